"""What a run's figures are, what they warn of, and how they are shown.

`scores` (log-probabilities under the trained policy) → `figures` (of an iteration) → `findings`
(warnings), `plots` and `report` (a page), `model_card`; beside them `evaluation` (the harness's
scores) and `reward_check`.
"""
