"""The published weights of PaSST (Koutini et al. 2022, "Efficient Training of Audio Transformers with Patchout").

PaSST is a DeiT with a class and a distillation token. Instead of one positional embedding for each patch, it has one
for each row (frequency) and one for each column (time) of patches, and their sum is that of a patch.
"""

from typing import Any

import torch

from ascmodels.checkpoint import CheckpointError

ROWS, COLUMNS, TOKENS = "freq_new_pos_embed", "time_new_pos_embed", "new_pos_embed"


def is_passt(weights: dict[str, Any]) -> bool:
    return ROWS in weights


def for_deit(weights: dict[str, torch.Tensor], grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the weights of PaSST with timm's names for a DeiT whose patches have `grid` (rows, columns).

    The columns are the first of those in the file, as PaSST itself uses them for short clips. The classifier is left
    out. CheckpointError if the file has fewer columns or another number of rows.
    """
    rows, columns, tokens = (weights[name] for name in (ROWS, COLUMNS, TOKENS))  # [1, D, R, 1], [1, D, 1, C], [1, 2, D]
    n_rows, n_columns = rows.shape[2], columns.shape[3]
    if grid[0] != n_rows or grid[1] > n_columns:
        raise CheckpointError(
            f"teacher.frontend and teacher.model.stride give {grid[0]} x {grid[1]} patches; expected {n_rows} rows "
            f"(frequency) and at most {n_columns} columns (time), because teacher.model.pretrained is a PaSST with so "
            "many: set teacher.frontend.n_mels=128 and the stride in the name of its file (p16-s10: 10)"
        )
    patches = (rows + columns[..., : grid[1]]).flatten(2).transpose(1, 2)  # [1, R * C, D]
    left_out = (ROWS, COLUMNS, TOKENS, "head.", "head_dist.")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    return kept | {"pos_embed": torch.cat([tokens, patches], dim=1)}
