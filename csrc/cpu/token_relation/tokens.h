// Tokens of a video by their number: reciprocal norms, blocks packed for products, and the gradient through the norm.
#pragma once

#include "../common/pack.h"
#include "calls.h"
#include "products.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Most tokens of a block, whole tiles of rows and of columns, and channels that are packed at a time, whole panels: what a
// tile needs at a time fits in a second cache of 1 MiB, or where registers are few, as on older CPUs, of 512 KiB.
template <class T>
constexpr int kBlock = kTileRows == 14 ? 224 : 192;
template <class T>
constexpr int kChannels = kTileRows == 14 ? 256 : 128;
// Tokens that are fetched ahead of the one that is packed: parts of them are too short for the CPU to foresee the next.
constexpr int64_t kAhead = 4;

// The tokens of one video in one tensor. Token i is token i % N of frame i / N.
template <class Storage>
struct Video {
  const Storage* data;
  int64_t frame_tokens, frame_stride, token_stride;

  Video(const Tensor& f, const Grid& grid, int64_t b)
      : data(static_cast<const Storage*>(f.data) + b * f.stride[0]),
        frame_tokens(grid.cols),
        frame_stride(f.stride[1]),
        token_stride(f.stride[3]) {}

  const Storage* token(int64_t i) const {
    return data + i / frame_tokens * frame_stride + i % frame_tokens * token_stride;
  }
};

// Calls function(Video<Storage>) for the storage type of the tensor.
template <class Function>
LGF_INLINE void with_video(const Tensor& f, const Grid& grid, int64_t b, Function&& function) {
  with_storage_type(f.dtype, [&](auto tag) { function(Video<typename decltype(tag)::type>(f, grid, b)); });
}

// 1 / max(norm, floor), but NaN where the square overflows: an infinite norm would make all similarities 0, and the loss wrong.
template <class T>
LGF_INLINE T reciprocal_norm(T square) {
  const T norm = square_root(square + (square - square));
  return T(1) / (norm < static_cast<T>(kNormFloor) ? static_cast<T>(kNormFloor) : norm);
}

// Writes the factors that normalise tokens first .. end - 1: reciprocal norms, or 1 for similarity "dot".
template <class T>
void write_factors(const Tensor& f, const RelationCall& call, int64_t b, int64_t first, int64_t end, T* factors) {
  with_video(f, call.grid, b, [&](const auto& video) {
    for (int64_t i = first; i < end; ++i)
      factors[i] = call.cosine ? reciprocal_norm(sum_of_lanes<T>(squares<T>(video.token(i), f.channels))) : T(1);
  });
}

// Successive tokens of a video, and successive channels, that are packed together.
struct Part {
  int64_t b, first, count;    // tokens
  int64_t channel, channels;  // of which `channels` exist

  template <class T>
  int64_t panels() const { return (channels + kColumns<T> - 1) / kColumns<T>; }
};

// Distance of panels of channels in a packed block of tokens.
template <class T>
constexpr int kTokenPanel = kBlock<T> * kColumns<T>;

template <class Storage>
LGF_INLINE void fetch(const Storage* source, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(source);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(Storage)); i += 64) __builtin_prefetch(bytes + i);
}

// target[panel][token][kColumns] = factor * token. Channels past the last are 0.
template <class T>
void pack_tokens(const Tensor& f, const Grid& grid, const Part& part, const T* factors, T sign, T* target) {
  with_video(f, grid, part.b, [&](const auto& video) {
    for (int64_t i = 0; i < part.count; ++i) {
      const auto* token = video.token(part.first + i) + part.channel;
      const Vec<T> factor = broadcast(factors[part.first + i] * sign);
      T* panel = target + i * kColumns<T>;
      if (i + kAhead < part.count) fetch(video.token(part.first + i + kAhead) + part.channel, part.channels);
      for (int64_t c = 0; c < part.channels; c += kColumns<T>, panel += kTokenPanel<T>)
        for (int v = 0; v < kTileVectors; ++v)
          store<T>(panel + v * kLanes<T>, load_some<T>(token + c + v * kLanes<T>, part.channels - c - v * kLanes<T>) * factor);
    }
  });
}

// target[panel of tokens][channel][kColumns] from packed tokens. Tokens past the last are 0.
template <class T>
void pack_channels(T* tokens, const Part& part, T* target) {
  const int64_t panels = part.panels<T>(), padded = round_up(part.count, kColumns<T>);
  for (int64_t p = 0; p < panels; ++p) {
    T* panel = tokens + p * kTokenPanel<T>;
    clear(panel + part.count * kColumns<T>, (padded - part.count) * kColumns<T>);
    for (int64_t i = 0; i < padded; i += kColumns<T>)
      transpose<T>(panel + i * kColumns<T>, kColumns<T>, kColumns<T>, kColumns<T>,
                   target + (i * panels + p * kColumns<T>) * kColumns<T>, kColumns<T>);
  }
}

// Replaces the gradient g of a normalised token z = f * factor by that of the token, (g - z <z, g>) * factor, without the
// projection where the floor of the norm holds.
template <class T, class Storage>
void project_token(const Storage* token, int64_t channels, T factor, T* gradient) {
  Vec<T> sums{};
  for (int64_t c = 0; c < channels; c += kLanes<T>)
    sums += load_some<T>(token + c, channels - c) * factor * load_some<T>(gradient + c, channels - c);
  const T radial = factor >= static_cast<T>(1 / kNormFloor) ? T(0) : sum_of_lanes<T>(sums) * factor;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const Vec<T> g = load_some<T>(gradient + c, channels - c);
    store_some<T>(gradient + c, (g - load_some<T>(token + c, channels - c) * radial) * factor, channels - c);
  }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
