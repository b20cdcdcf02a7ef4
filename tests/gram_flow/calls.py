"""Losses of Local Gram Flow for the tests that all families share."""

import lgf_kernels as lgf

LOSSES = {
    "lgf_kl": lambda student, teacher, **o: lgf.lgf_kl_loss(student, [teacher, teacher.half()], window=3, **o),
    "lgf_kl token weights": lambda student, teacher, **o: lgf.lgf_kl_loss(
        student, teacher, window=3, direction="both", token_weight=teacher[:, 1:, ..., 0].abs(), **o
    ),
    "lgf_kl none": lambda student, teacher, **o: lgf.lgf_kl_loss(student, teacher, reduction="none", **o).sum(),
    "from logits": lambda student, teacher, **o: lgf.lgf_kl_loss_from_logits(
        student, lgf.local_gram_flow(teacher, backend="portable").half(), **o
    ),
    "local_gram_flow": lambda student, teacher, **o: (lgf.local_gram_flow(student, **o) ** 2).mean(),
}
