"""The backend that runs wherever torch does: lean PyTorch with its own backward, no compiler and no GPU vendor assumed.

The work is done by torch's matrix products on tiles that fit in cache, so that nothing the size of a Gram matrix or
of an unfolded feature map is ever held.
"""
