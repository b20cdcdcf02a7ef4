"""Patch cosine losses for the tests that all families share."""

import lgf_kernels as lgf


def teachers_of(student, teacher):
    """Return two teachers with the student's channels, views of a single one; more than two where it has few channels."""
    C = student.shape[-1]
    width = min(teacher.shape[-1], -(-C // 2))
    return [teacher[..., : min(width, C - c)] for c in range(0, C, width)]


def frames(student, teacher, **options):
    """Return the loss of frames of which a half counts, each with those around it."""
    weight = lgf.crepa_frame_weight(teacher.shape[1], device=teacher.device)[: student.shape[1]]
    teachers = teachers_of(student, teacher)
    options |= dict(frame_weight=weight, token_weight=teacher[..., 0] > 0, teacher_weights=range(1, len(teachers) + 1))
    return lgf.patch_cosine_loss(student, teachers, reduction="none", **options).sum()


LOSSES = {
    "patch_cosine": lambda student, teacher, **o: lgf.patch_cosine_loss(student, teachers_of(student, teacher), **o),
    "patch_cosine frames": frames,
}
