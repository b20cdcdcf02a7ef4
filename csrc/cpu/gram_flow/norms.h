// Reciprocal norms of tokens, each computed once for all roles of its token: a key of one pair of frames, a query of the next
// and, in the backward pass, itself.
#pragma once

#include "../common/normalise.h"
#include "layout.h"

namespace lgf {
namespace LGF_ISA {
namespace {

template <class T>
class Norms {
 public:
  // Of `sources` tensors, each with `frames` successive frames in use at a time.
  Norms(const Layout<T>& layout, const Window& window, int64_t sources, int64_t frames, Arena& arena)
      : layout_(layout),
        frames_(frames),
        rows_(window.cosine ? sources * frames * layout.rows : 0),
        norms_(arena.take<T>(rows_ * layout.cols)),
        frame_of_(arena.take<int64_t>(rows_)) {}

  // To be called before the first use.
  void forget() { clear(frame_of_, rows_); }

  // Returns those of row (b, t, y), or null where features are not normalised.
  const T* row(const Tensor& f, int64_t source, int64_t b, int64_t t, int64_t y) {
    if (rows_ == 0) return nullptr;
    const int64_t row = (source * frames_ + t % frames_) * layout_.rows + y, frame = b * layout_.grid.frames + t + 1;
    T* norms = norms_ + row * layout_.cols;
    if (frame_of_[row] != frame) compute(f, b, t, y, norms);
    frame_of_[row] = frame;
    return norms;
  }

 private:
  void compute(const Tensor& f, int64_t b, int64_t t, int64_t y, T* norms) const {
    with_storage_type(f.dtype, [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      for_each_group<T>(layout_.cols, [&](int64_t x, int64_t count) {
        const Storage* token = token_address<Storage>(f, b, t, y, x);
        const Vec<T> r = reciprocal_norms<T>(token, f.stride[3], count, f.channels);
        for (int64_t i = 0; i < count; ++i) norms[x + i] = r[i];
      });
    });
  }

  const Layout<T>& layout_;
  int64_t frames_, rows_;
  T* norms_;
  int64_t* frame_of_;  // the number of the frame whose norms a row holds, from 1 on
};

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
