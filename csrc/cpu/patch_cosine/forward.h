// Forward driver, and the pass that scales what it wrote. The formulas are in lgf_kernels/patch_cosine/folding.py.
//
// A thread takes lines of tokens: with frame weights all frames of one place, whose teachers, once read, stay in cache until
// every frame has been folded from them; without, as many neighbours in an image row as a vector has lanes. First the norms of
// a line, one token a lane, so that their roots and quotients overlap; then token by token the folded teacher, which stays in
// the first cache, its product with the student, and the gradient. Each feature is read from memory once.
#pragma once

#include "../common/normalise.h"
#include "../common/threads.h"
#include "calls.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Tokens at a fixed distance from each other, in elements.
struct TokenLine {
  const void* data;
  DType dtype;
  int64_t stride;
};

// A line that starts at (b, t, y, x); along the frames, or along the columns of an image row.
inline TokenLine line_of(const Tensor& f, int64_t b, int64_t t, int64_t y, int64_t x, bool along_frames) {
  TokenLine line{nullptr, f.dtype, f.stride[along_frames ? 1 : 3]};
  with_storage_type(f.dtype, [&](auto tag) {
    line.data = token_address<typename decltype(tag)::type>(f, b, t, y, x);
  });
  return line;
}

// Writes factor / max(norm, floor) of `count` tokens; `target` has room for whole vectors.
template <class T>
void write_reciprocal_norms(const TokenLine& line, int64_t count, int64_t channels, T factor, T* target) {
  with_storage_type(line.dtype, [&](auto tag) {
    const auto* tokens = static_cast<const typename decltype(tag)::type*>(line.data);
    for_each_group<T>(count, [&](int64_t first, int64_t some) {
      store<T>(target + first, reciprocal_norms<T>(tokens + first * line.stride, line.stride, some, channels) * factor);
    });
  });
}

// folded (+)= coefficient * token, in whole panels.
template <class T>
void add_token(const TokenLine& line, int64_t index, int64_t channels, T coefficient, bool accumulate, T* folded) {
  with_storage_type(line.dtype, [&](auto tag) {
    const auto* token = static_cast<const typename decltype(tag)::type*>(line.data) + index * line.stride;
    for (int64_t c = 0; c < channels; c += kPanel<T>) {
      Vec<T> v[kPanelVectors];
      load_panel<T>(token + c, channels - c, v);
      for (int i = 0; i < kPanelVectors; ++i) {
        T* target = folded + c + i * kLanes<T>;
        store<T>(target, accumulate ? load(target) + v[i] * coefficient : v[i] * coefficient);
      }
    }
  });
}

// Returns a vector whose lanes sum to <token, folded>.
template <class T, class Storage>
Vec<T> product_with(const Storage* token, int64_t channels, const T* folded) {
  Vec<T> f[kPanelVectors], sums[kPanelVectors] = {};
  for (int64_t c = 0; c < channels; c += kPanel<T>) {
    load_panel<T>(token + c, channels - c, f);
    for (int i = 0; i < kPanelVectors; ++i) sums[i] += f[i] * load(folded + c + i * kLanes<T>);
  }
  for (int i = 1; i < kPanelVectors; ++i) sums[0] += sums[i];
  return sums[0];
}

// gradient = along * token - folded
template <class T, class Storage>
void write_gradient(const Storage* token, int64_t channels, T along, const T* folded, Storage* gradient) {
  for (int64_t c = 0; c < channels; c += kPanel<T>) {
    Vec<T> f[kPanelVectors];
    load_panel<T>(token + c, channels - c, f);
    for (int i = 0; i < kPanelVectors; ++i) f[i] = f[i] * along - load(folded + c + i * kLanes<T>);
    store_panel<T>(gradient + c, channels - c, f);
  }
}

// Buffers of a thread. The folded teacher has every teacher's channels in panels of their own.
template <class T>
struct PatchBuffers {
  int64_t padded;  // length of a line, in whole vectors
  TokenLine* teachers;
  T* folded;
  T* own;     // reciprocal norms of the student's tokens of a line
  T* theirs;  // share / norm of each teacher's tokens of a line, one teacher after the other

  PatchBuffers(const PatchForwardCall& call, Arena& arena) {
    const int64_t count = call.teacher_count, frames = call.grid.frames;
    const int64_t longest = frames > call.teacher_frames ? frames : call.teacher_frames;
    padded = call.weights ? round_up(longest, kLanes<T>) : kLanes<T>;
    int64_t channels = 0;
    for (int64_t m = 0; m < count; ++m) channels += round_up(call.teachers[m].features.channels, kPanel<T>);
    teachers = arena.take<TokenLine>(count);
    folded = arena.take<T>(channels);
    own = arena.take<T>(padded);
    theirs = arena.take<T>(count * padded);
  }
};

// Folds the teachers of one token of a line: that of the same index, or with weights those of all that have one.
template <class T>
void fold(const PatchForwardCall& call, const PatchBuffers<T>& buffers, int64_t index, const T* weights) {
  T* folded = buffers.folded;
  for (int64_t m = 0; m < call.teacher_count; ++m) {
    const int64_t channels = call.teachers[m].features.channels, size = round_up(channels, kPanel<T>);
    const T* scale = buffers.theirs + m * buffers.padded;
    if (!weights) {
      add_token<T>(buffers.teachers[m], index, channels, scale[index], false, folded);
    } else {
      for (int64_t c = 0; c < size; ++c) folded[c] = 0;
      for (int64_t k = 0; k < call.teacher_frames; ++k)
        if (weights[k] != 0) add_token<T>(buffers.teachers[m], k, channels, weights[k] * scale[k], true, folded);
    }
    folded += size;
  }
}

// Writes distance, reciprocal norm and gradient of a token, which is number `row` of the student.
template <class T, class Storage>
void finish(const PatchForwardCall& call, const PatchBuffers<T>& buffers, const Storage* token, T s, int64_t row) {
  const T* folded = buffers.folded;
  Vec<T> sums{};
  int64_t start = 0;
  for (int64_t m = 0; m < call.teacher_count; ++m) {
    const int64_t channels = call.teachers[m].features.channels;
    sums += product_with<T>(token + start, channels, folded);
    start += channels;
    folded += round_up(channels, kPanel<T>);
  }
  const T r = sum_of_lanes<T>(sums) * s;
  static_cast<T*>(call.distance)[row] = 1 - r;
  static_cast<T*>(call.reciprocal)[row] = s;
  if (!call.gradient) return;
  // Where the floor holds, the norm is a constant and nothing is projected.
  const T along = r * (s >= static_cast<T>(1 / kNormFloor) ? T(0) : s);
  Storage* gradient = static_cast<Storage*>(call.gradient) + row * call.student.channels;
  folded = buffers.folded;
  start = 0;
  for (int64_t m = 0; m < call.teacher_count; ++m) {
    const int64_t channels = call.teachers[m].features.channels;
    write_gradient<T>(token + start, channels, along, folded, gradient + start);
    start += channels;
    folded += round_up(channels, kPanel<T>);
  }
}

// A line of `count` tokens from (b, t, y, x) on.
template <class T>
void patch_line(const PatchForwardCall& call, PatchBuffers<T>& buffers, int64_t b, int64_t t, int64_t y, int64_t x,
                int64_t count) {
  const Grid& grid = call.grid;
  const bool along_frames = call.weights != nullptr;
  const int64_t teacher_count = along_frames ? call.teacher_frames : count;
  for (int64_t m = 0; m < call.teacher_count; ++m) {
    const PatchTeacher& teacher = call.teachers[m];
    buffers.teachers[m] = line_of(teacher.features, b, t, y, x, along_frames);
    write_reciprocal_norms<T>(buffers.teachers[m], teacher_count, teacher.features.channels, static_cast<T>(teacher.share),
                              buffers.theirs + m * buffers.padded);
  }
  const TokenLine own = line_of(call.student, b, t, y, x, along_frames);
  write_reciprocal_norms<T>(own, count, call.student.channels, T(1), buffers.own);
  const int64_t first = ((b * grid.frames + t) * grid.rows + y) * grid.cols + x;
  const int64_t step = along_frames ? grid.rows * grid.cols : 1;
  const T* weights = static_cast<const T*>(call.weights);
  with_storage_type(own.dtype, [&](auto tag) {
    const auto* tokens = static_cast<const typename decltype(tag)::type*>(own.data);
    for (int64_t i = 0; i < count; ++i) {
      fold<T>(call, buffers, i, weights ? weights + i * call.teacher_frames : nullptr);
      finish<T>(call, buffers, tokens + i * own.stride, buffers.own[i], first + i * step);
    }
  });
}

template <class T>
void patch_forward(const PatchForwardCall& call) {
  const Grid& grid = call.grid;
  const bool along_frames = call.weights != nullptr;
  const int64_t columns = along_frames ? grid.cols : round_up(grid.cols, kLanes<T>) / kLanes<T>;  // lines of an image row
  const int64_t frames = along_frames ? 1 : grid.frames;
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    PatchBuffers<T> buffers(call, arena);
    for (int64_t line = begin; line < end; ++line) {
      const RowIndex row(line / columns, frames, grid.rows);
      const int64_t x = line % columns * (along_frames ? 1 : kLanes<T>), left = grid.cols - x;
      const int64_t count = along_frames ? grid.frames : left < kLanes<T> ? left : kLanes<T>;
      patch_line<T>(call, buffers, row.b, row.t, row.y, x, count);
    }
  };
  for_each_thread(grid.batch * frames * grid.rows * columns, call.threads, measure<PatchBuffers<T>>(call), run);
}

// out = scale * gradient, token by token.
template <class T>
void patch_backward(const PatchBackwardCall& call) {
  const int64_t channels = call.channels;
  with_storage_type(call.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const auto run = [&](int64_t begin, int64_t end, char*) {
      for (int64_t token = begin; token < end; ++token) {
        const Storage* source = static_cast<const Storage*>(call.gradient) + token * channels;
        Storage* target = static_cast<Storage*>(call.out) + token * channels;
        const T scale = static_cast<const T*>(call.scale)[token];
        for (int64_t c = 0; c < channels; c += kPanel<T>) {
          Vec<T> v[kPanelVectors];
          load_panel<T>(source + c, channels - c, v);
          for (int i = 0; i < kPanelVectors; ++i) v[i] *= scale;
          store_panel<T>(target + c, channels - c, v);
        }
      }
    };
    for_each_thread(call.tokens, call.threads, 0, run);
  });
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
