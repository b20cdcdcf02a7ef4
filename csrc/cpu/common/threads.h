// Threads over the rows of images, and over rounds of tasks.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "panels.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// A row of a (batch, frames or pairs, rows) grid.
struct RowIndex {
  int64_t b, t, y;
  RowIndex(int64_t row, int64_t frames, int64_t rows)
      : b(row / (frames * rows)), t(row / rows % frames), y(row % rows) {}
};

// Calls function(first row, end row, scratch of the thread) on up to `threads` threads. bound(i, n) is the first row of
// thread i of n, and bound(n, n) = `rows`.
template <class Bound, class Function>
void for_each_thread_from(int64_t rows, int threads, std::size_t scratch_bytes, const Bound& bound,
                          Function&& function) {
  const int64_t limit = threads < 1 ? 1 : threads;
  const int64_t wanted = rows < limit ? rows : limit;
  const Scratch scratch(static_cast<std::size_t>(wanted) * scratch_bytes);
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(wanted)) if (wanted > 1)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    function(bound(me, team), bound(me + 1, team), scratch.data() + static_cast<std::size_t>(me) * scratch_bytes);
  }
#else
  function(int64_t(0), rows, scratch.data());
#endif
}

// Calls function(first row, end row, scratch of the thread), with as many rows for each thread.
template <class Function>
void for_each_thread(int64_t rows, int threads, std::size_t scratch_bytes, Function&& function) {
  const auto bound = [&](int64_t part, int64_t parts) { return part * rows / parts; };
  for_each_thread_from(rows, threads, scratch_bytes, bound, function);
}

// Likewise, with as much work for each thread: cost(row) > 0 is that of a row.
template <class Cost, class Function>
void for_each_thread_by_cost(int64_t rows, int threads, std::size_t scratch_bytes, const Cost& cost,
                             Function&& function) {
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row) total += cost(row);
  const auto bound = [&](int64_t part, int64_t parts) {
    int64_t row = 0;
    for (int64_t before = 0; row < rows && before < total * part / parts; ++row) before += cost(row);
    return row;
  };
  for_each_thread_from(rows, threads, scratch_bytes, bound, function);
}

// Calls function(task, copy, scratch of a thread) on up to `threads` threads for all tasks, `copies` times each, round after
// round: round r ends before task ends[r], and all of it is done before the next begins.
template <class Function>
void for_each_round(const int64_t* ends, int64_t rounds, int64_t copies, int threads, std::size_t scratch_bytes,
                    Function&& function) {
  int64_t most = 1;
  for (int64_t r = 0; r < rounds; ++r) {
    const int64_t tasks = copies * (ends[r] - (r ? ends[r - 1] : 0));
    most = tasks > most ? tasks : most;
  }
  const int64_t limit = threads < 1 ? 1 : threads;
  const int64_t wanted = most < limit ? most : limit;
  const Scratch scratch(static_cast<std::size_t>(wanted) * scratch_bytes);
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(wanted)) if (wanted > 1)
#endif
  {
#ifdef _OPENMP
    char* own = scratch.data() + static_cast<std::size_t>(omp_get_thread_num()) * scratch_bytes;
#else
    char* own = scratch.data();
#endif
    for (int64_t r = 0; r < rounds; ++r) {
      const int64_t first = copies * (r ? ends[r - 1] : 0), end = copies * ends[r];
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
      for (int64_t task = first; task < end; ++task) function(task / copies, task % copies, own);
    }
  }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
