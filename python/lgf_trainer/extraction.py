"""The work of `lgf extract`: what to make of which video, making it, and an account of it."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from lgf_kernels import local_gram_flow

from .cache import WindowCache
from .encoders import Student
from .errors import TrainerError
from .sources import Clip, Opener
from .teachers import LostSubject, Track, to_grid
from .video import Fit, Video, VideoError, to_signed
