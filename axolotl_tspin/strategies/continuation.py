"""Tokens of a text that continues a prompt."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

STAND_INS = ("\n", ":", "a", "1")
"""Texts behind which a continuation is tokenised where a token spans its border with the prompt."""


class ResponseTokenizer:
    """Tokenises responses behind their prompts.

    A response's tokens are what follows the prompt's tokens when both texts are tokenised
    together: that is where a policy which reads the prompt goes on. Where a token spans the border
    (a prompt that ends in a space, say), the prompt's own tokens are kept, and the response is
    tokenised without what is before it. It then differs from the joint text's tokens on purpose:
    the policy cannot take back the prompt's last token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._stand_ins = [(text, self._ids([text])[0]) for text in STAND_INS]
        # Sentencepiece-style tokenizers put a space before a text's first word.
        self._adds_prefix = self._alone("b") != self._ids(["b"])[0]

    def behind(self, prompt_ids: Sequence[int], text: str) -> list[int]:
        """Tokenise one response, behind a prompt of which only the tokens are known."""
        prompt = str(self._tokenizer.decode(list(prompt_ids)))
        return self.batch([prompt], [prompt_ids], [text])[0]

    def batch(
        self, prompts: Sequence[str], prompt_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        """Tokenise responses, each behind the prompt of the same position.

        Args:
            prompt_ids: the prompts' tokens, without a begin-of-text token that their text lacks.
        """
        wholes = self._ids([p + text for p, text in zip(prompts, texts, strict=True)])
        return [
            whole[len(ids) :] if whole[: len(ids)] == list(ids) else self._spanned(text)
            for whole, ids, text in zip(wholes, prompt_ids, texts, strict=True)
        ]

    def _spanned(self, text: str) -> list[int]:
        return self._alone(text) if self._adds_prefix else self._ids([text])[0]

    def _alone(self, text: str) -> list[int]:
        """Tokenise a text behind the first stand-in that it does not merge with."""
        behind = self._ids([stand_in + text for stand_in, _ in self._stand_ins])
        for ids, (_, before) in zip(behind, self._stand_ins, strict=True):
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._ids([text])[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
