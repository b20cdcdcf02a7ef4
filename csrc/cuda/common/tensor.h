// Access to tensors of any storage type and stride, and the tiles of their frames.
#pragma once

#include "calls.h"
#include "device.h"

namespace lgf {
namespace cuda {

LGF_DEVICE int64_t offset(const Tensor& f, int64_t b, int64_t t, int y, int x) {
  return b * f.stride[0] + t * f.stride[1] + y * f.stride[2] + x * f.stride[3];
}

// Returns the number of a token among those of all frames (or pairs of frames), in the order of memory.
LGF_DEVICE int64_t token_number(const Grid& grid, int64_t frame, int y, int x) {
  return (frame * grid.rows + y) * grid.cols + x;
}

LGF_DEVICE int64_t pair_number(const Grid& grid, int b, int t) { return int64_t(b) * (grid.frames - 1) + t; }

LGF_DEVICE bool in_frame(const Grid& grid, int y, int x) { return y >= 0 && y < grid.rows && x >= 0 && x < grid.cols; }

// Eight numbers of half precision.
struct alignas(16) Piece {
  std::uint16_t bits[8];
};

// Loads an element in the accumulation type. The switch is the same for all threads of a block.
template <class T>
LGF_DEVICE T load(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::float32: return static_cast<T>(static_cast<const float*>(data)[at]);
    case DType::bfloat16: return static_cast<T>(widen(static_cast<const BFloat16*>(data)[at]));
    case DType::float16: return static_cast<T>(widen(static_cast<const Float16*>(data)[at]));
    default: return static_cast<T>(static_cast<const double*>(data)[at]);
  }
}

template <class T>
LGF_DEVICE void store(void* data, DType dtype, int64_t at, T value) {
  switch (dtype) {
    case DType::float32: static_cast<float*>(data)[at] = static_cast<float>(value); break;
    case DType::bfloat16: static_cast<BFloat16*>(data)[at] = narrow<BFloat16>(static_cast<float>(value)); break;
    case DType::float16: static_cast<Float16*>(data)[at] = narrow<Float16>(static_cast<float>(value)); break;
    default: static_cast<double*>(data)[at] = static_cast<double>(value);
  }
}

// Stores 16 bytes at once, at a multiple of 16.
LGF_DEVICE void store_piece(void* to, const unsigned (&words)[4]) {
  struct alignas(16) Words {
    unsigned words[4];
  };
  *static_cast<Words*>(to) = {{words[0], words[1], words[2], words[3]}};
}

inline bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % sizeof(Piece) == 0; }

// Returns whether tokens can be copied in pieces.
inline bool in_pieces(const Tensor& f) {
  bool whole = f.channels % 8 == 0 && aligned(f.data);
  for (const int64_t stride : f.stride) whole = whole && stride % 8 == 0;
  return whole && (f.dtype == DType::bfloat16 || f.dtype == DType::float16);
}

// The tile a block works on. Blocks are numbered tile by tile, then frame by frame (or pair by pair).
struct Tile {
  int b, t, y0, x0;

  LGF_DEVICE Tile(const Grid& grid, int frames, int height, int width) {
    const int across = (grid.cols + width - 1) / width, down = (grid.rows + height - 1) / height;
    const int block = block_index(), column = block % across, rest = block / across;
    x0 = column * width;
    y0 = rest % down * height;
    t = rest / down % frames;
    b = rest / down / frames;
  }
};

// Returns the number of blocks of a launch, for so many frames (or pairs) of each video.
inline int64_t tiles(const Grid& grid, int frames, int height, int width) {
  const int64_t across = (grid.cols + width - 1) / width, down = (grid.rows + height - 1) / height;
  return across * down * frames * grid.batch;
}

}  // namespace cuda
}  // namespace lgf
