// Drivers of the forward passes. Each thread takes a contiguous run of image rows (b, pair, y). The result of a row does not
// depend on where a run starts, so that it is the same for any number of threads.
#pragma once

#include "../common/threads.h"
#include "../common/transpose.h"
#include "counted_rows.h"
#include "divergence.h"
#include "gram.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// ---- local_gram_flow --------------------------------------------------------------------------

template <class T>
struct GramFlowBuffers {
  Layout<T> layout;
  Norms<T> norms;
  FrameGram<T> gram;
  T* planes;

  GramFlowBuffers(const GramFlowCall& call, Arena& arena)
      : layout(call.grid, call.window.size, call.features.channels),
        norms(layout, call.window, 1, 2, arena),
        gram(layout, arena),
        planes(arena.take<T>(layout.planes_size())) {}
};

template <class T>
void local_gram_flow(const GramFlowCall& call) {
  const int64_t pairs = call.grid.frames - 1;
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    GramFlowBuffers<T> buffers(call, arena);
    buffers.norms.forget();
    const Layout<T>& layout = buffers.layout;
    for (int64_t row = begin; row < end; ++row) {
      const RowIndex at(row, pairs, layout.rows);
      buffers.gram.row(call.features, buffers.norms, 0, call.window, at.b, at.t, at.y, T(1), false, buffers.planes);
      clear_outside<T>(layout, at.y, buffers.planes);
      T* logits = static_cast<T*>(call.logits) + row * layout.cols * layout.positions();
      transpose<T>(buffers.planes, layout.plane_pitch, layout.positions(), layout.cols, logits, layout.positions());
    }
  };
  for_each_thread(call.grid.batch * pairs * call.grid.rows, call.threads, measure<GramFlowBuffers<T>>(call), run);
}

// ---- lgf_kl -----------------------------------------------------------------------------------

// Rows whose teacher logits are computed before the student's: the ring of key rows of one feature tensor at a time stays
// in cache.
constexpr int64_t kBandRows = 32;

// Work of a row, where clearing the outputs of one that is not counted is 1: for the division among threads.
constexpr int64_t kCountedCost = 16;

// tokens (+)= weight * cached logits of row (b, pair, y), token-major.
template <class T>
void cached_logits_row(const Tensor& f, const Layout<T>& layout, int64_t b, int64_t pair, int64_t y, T weight,
                       bool accumulate, T* tokens) {
  // The tokens of a contiguous row are read together, because a single token rarely fills whole vectors.
  const bool contiguous = f.stride[3] == f.channels;
  const int64_t run = contiguous ? layout.cols * f.channels : f.channels;
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t x = 0; x < layout.cols; x += contiguous ? layout.cols : 1) {
      const Storage* source = token_address<Storage>(f, b, pair, y, x);
      T* target = tokens + x * f.channels;
      for (int64_t i = 0; i < run; i += kLanes<T>) {
        const int64_t left = run - i < kLanes<T> ? run - i : kLanes<T>;
        const bool whole = left == kLanes<T>;
        Vec<T> z = (whole ? Convert<T, Storage>::from(source + i) : load_partial<T>(source + i, left)) * weight;
        if (accumulate) z += whole ? load(target + i) : load_partial<T>(target + i, left);
        if (whole) store<T>(target + i, z);
        else store_partial<T>(target + i, z, left);
      }
    }
  });
}

// Successive rows of one pair of frames, from number `row` on.
struct Band {
  RowIndex first;
  int64_t row, count;
};

template <class T>
struct LgfKlBuffers {
  Layout<T> layout;
  Norms<T> norms;     // of the teachers' features, then the student's
  T* teacher_planes;  // a band of rows
  T* student_planes;  // one row
  T* tokens;          // one row of cached logits, token-major

  LgfKlBuffers(const LgfKlCall& call, Arena& arena)
      : layout(call.grid, call.window.size, call.student.channels),
        norms(layout, call.window, call.teachers_are_logits ? 1 : call.teacher_count + 1, 2, arena),
        teacher_planes(arena.take<T>(kBandRows * layout.planes_size())),
        student_planes(arena.take<T>(layout.planes_size())),
        tokens(arena.take<T>(call.teachers_are_logits ? layout.cols * layout.positions() : 0)) {}
};

// Returns the bytes of the largest FrameGram of the tensors of a call, which are used one after the other.
template <class T>
std::size_t gram_bytes(const LgfKlCall& call) {
  const auto bytes = [&](const Tensor& f) {
    Arena arena(nullptr);
    const Layout<T> layout(call.grid, call.window.size, f.channels);
    FrameGram<T> gram(layout, arena);
    return arena.used();
  };
  std::size_t most = bytes(call.student);
  for (int64_t m = 0; m < call.teacher_count && !call.teachers_are_logits; ++m) {
    const std::size_t one = bytes(call.teachers[m].tensor);
    most = one > most ? one : most;
  }
  return most;
}

// zT = sum_m w_m z_m for the counted rows of a band, into buffers.teacher_planes.
template <class T>
void cached_teacher_logits(const LgfKlCall& call, const LgfKlBuffers<T>& buffers, const CountedRows<T>& counted,
                           const Band& band) {
  const Layout<T>& layout = buffers.layout;
  for (int64_t i = 0; i < band.count; ++i) {
    if (!counted[band.row + i]) continue;
    for (int64_t m = 0; m < call.teacher_count; ++m)
      cached_logits_row<T>(call.teachers[m].tensor, layout, band.first.b, band.first.t, band.first.y + i,
                           static_cast<T>(call.teachers[m].weight), m > 0, buffers.tokens);
    transpose<T>(buffers.tokens, layout.positions(), layout.cols, layout.positions(),
                 buffers.teacher_planes + i * layout.planes_size(), layout.plane_pitch);
  }
}

template <class T>
void teacher_logits(const LgfKlCall& call, LgfKlBuffers<T>& buffers, Arena gram_arena,
                    const CountedRows<T>& counted, const Band& band) {
  for (int64_t m = 0; m < call.teacher_count; ++m) {
    const Tensor& f = call.teachers[m].tensor;
    const Layout<T> layout(call.grid, call.window.size, f.channels);
    Arena arena = gram_arena;
    FrameGram<T> gram(layout, arena);
    for (int64_t i = 0; i < band.count; ++i)
      if (counted[band.row + i])
        gram.row(f, buffers.norms, m, call.window, band.first.b, band.first.t, band.first.y + i,
                 static_cast<T>(call.teachers[m].weight), m > 0, buffers.teacher_planes + i * layout.planes_size());
  }
}

// Writes divergence and gradient of one row to the outputs, at token index `token`.
template <class T>
void divergence_row(const LgfKlCall& call, const Layout<T>& layout, int64_t y, int64_t token, T* teacher, T* student) {
  const bool gradient = call.g != nullptr;
  T* out = static_cast<T*>(call.kl) + token;
  for (int64_t x = 0; x < layout.cols; x += kLanes<T>) {
    const Vec<T> value =
        call.squared_error
            ? squared_error<T>(layout, y, x, call.exclude_boundary, gradient, teacher, student)
            : kl_divergence<T>(layout, y, x, call.exclude_boundary, static_cast<T>(1 / call.temperature), gradient,
                               teacher, student);
    const int64_t left = layout.cols - x;
    store_partial<T>(out + x, value, left < kLanes<T> ? left : kLanes<T>);
  }
  if (gradient)
    transpose<T>(student, layout.plane_pitch, layout.positions(), layout.cols,
                 static_cast<T*>(call.g) + token * layout.positions(), layout.positions());
}

// Writes the outputs of a row that is not counted.
template <class T>
void clear_row(const LgfKlCall& call, const Layout<T>& layout, int64_t token) {
  clear(static_cast<T*>(call.kl) + token, layout.cols);
  if (call.g) clear(static_cast<T*>(call.g) + token * layout.positions(), layout.cols * layout.positions());
}

template <class T>
void lgf_kl_forward(const LgfKlCall& call) {
  const int64_t pairs = call.grid.frames - 1;
  const CountedRows<T> counted(call.weights, call.grid);
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    LgfKlBuffers<T> buffers(call, arena);
    buffers.norms.forget();
    const Layout<T>& layout = buffers.layout;
    const int64_t student = call.teachers_are_logits ? 0 : call.teacher_count;
    for (int64_t row = begin; row < end;) {
      const RowIndex first(row, pairs, layout.rows);
      int64_t count = layout.rows - first.y < kBandRows ? layout.rows - first.y : kBandRows;
      count = end - row < count ? end - row : count;
      const Band band{first, row, count};
      if (call.teachers_are_logits) cached_teacher_logits<T>(call, buffers, counted, band);
      else teacher_logits<T>(call, buffers, arena, counted, band);
      Arena gram_arena = arena;
      FrameGram<T> gram(layout, gram_arena);
      for (int64_t i = 0; i < count; ++i, ++row) {
        if (!counted[row]) {
          clear_row<T>(call, layout, row * layout.cols);
          continue;
        }
        gram.row(call.student, buffers.norms, student, call.window, first.b, first.t, first.y + i, T(1), false,
                 buffers.student_planes);
        T* teacher_planes = buffers.teacher_planes + i * layout.planes_size();
        clear_outside<T>(layout, first.y + i, teacher_planes);
        clear_outside<T>(layout, first.y + i, buffers.student_planes);
        divergence_row<T>(call, layout, first.y + i, row * layout.cols, teacher_planes, buffers.student_planes);
      }
    }
  };
  const auto cost = [&](int64_t row) { return counted[row] ? kCountedCost : 1; };
  for_each_thread_by_cost(call.grid.batch * pairs * call.grid.rows, call.threads,
                          measure<LgfKlBuffers<T>>(call) + gram_bytes<T>(call), cost, run);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
