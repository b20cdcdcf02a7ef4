// Calls of the kernels of token relations: the boundary between the bindings and the code of an instruction set.
#pragma once

#include <cstdint>

#include "../common/dispatch.h"

namespace lgf {

// Two blocks of the tokens of a video, row <= column, by their number: their pairs are one task.
struct RelationTile {
  std::int64_t row, column;
};

// Blocks and tiles of a video: block k has the tokens starts[k] .. starts[k + 1] - 1; round r of the tiles ends before tile
// ends[r], and no block is in two tiles of one round.
struct RelationRounds {
  const std::int64_t* starts;
  const RelationTile* tiles;
  const std::int64_t* ends;
  std::int64_t count;
};

// The accumulate type of a call is float64 when `student` is float64, else float32. `void*` has that type, and is
// contiguous.
struct RelationCall {
  Grid grid;       // (B, F, 1, N)
  Tensor student;  // (B, F, 1, N, C)
  Tensor teacher;  // (B, F, 1, N, C')
  const void* weights;  // (F, F), symmetric: twice the pair weights over N * N
  void* losses;         // (B)
  void* gradient;       // (B, F, N, C), or null if not wanted
  double margin;
  bool squared, cosine, clamps_student, clamps_teacher;
  RelationRounds rounds;
  int threads;
};

// Entry points of the kernels of one instruction set.
struct RelationKernels {
  std::int64_t (*block)(DType student);  // most tokens of a block
  void (*forward)(const RelationCall&);
};

}  // namespace lgf
