"""Figures of a run, the warnings that they lead to, and the pages that show them.

Scores (log-probabilities under the trained policy) → `figures` (of an iteration) → `findings`
(warnings) → `run_data` → `tiles`, `samples`, `charts` (drawn by `svg`) → `report` (a page).
`model_card`, `evaluation` (the harness's scores) and `reward_check` are separate.
"""
