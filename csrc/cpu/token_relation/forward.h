// Driver of token relations: losses and gradient together, tile by tile.
//
// A tile is the pairs of two blocks of tokens. Its similarities are products of packed channels, those of the teacher
// negated, so that both add up to the difference; the difference becomes a coefficient where it lies, in the thread's second
// cache, and is multiplied at once by the columns' tokens (the gradient of the rows) and, read down the columns, by the rows'
// (the gradient of the columns). What is kept of a tile is its part of the loss. Tiles come in rounds (schedule.h).
#pragma once

#include "../common/threads.h"
#include "distances.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Buffers of a thread.
template <class T>
struct RelationBuffers {
  T* rows;      // packed tokens of the rows
  T* columns;   // packed tokens of the columns
  T* channels;  // the columns once more, packed by channels
  T* tile;      // differences, then coefficients, kPitch apart
  T* student;   // similarities of the student where they are clamped
  T* weights;   // a line for each frame of the rows

  RelationBuffers(const RelationCall& call, Arena& arena) {
    const int64_t N = call.grid.cols, tokens = call.grid.frames * N;
    const int64_t block = tokens < kBlock<T> ? tokens : kBlock<T>, frames = (block - 1) / N + 2;
    const int64_t most = call.student.channels > call.teacher.channels ? call.student.channels : call.teacher.channels;
    const int64_t wide = round_up(most < kChannels<T> ? most : kChannels<T>, kColumns<T>);
    rows = arena.take<T>(kBlock<T> * wide);
    columns = arena.take<T>(kBlock<T> * wide);
    channels = arena.take<T>(kBlock<T> * wide);
    tile = arena.take<T>(block * kPitch<T>);
    student = arena.take<T>(call.clamps_student ? block * kPitch<T> : 0);
    weights = arena.take<T>((frames < block ? frames : block) * kPitch<T>);
  }
};

// Memory of a call: factors of all tokens, and the partial loss of each tile.
template <class T>
struct RelationSums {
  T* student;      // factors (B, n)
  T* teacher;
  double* losses;  // (B, tiles)

  RelationSums(const RelationCall& call, Arena& arena) {
    const int64_t tokens = call.grid.batch * call.grid.frames * call.grid.cols;
    student = arena.take<T>(tokens);
    teacher = arena.take<T>(tokens);
    losses = arena.take<double>(call.grid.batch * tile_count(call));
  }

  static int64_t tile_count(const RelationCall& call) {
    return call.rounds.count ? call.rounds.ends[call.rounds.count - 1] : 0;
  }
};

// Calls function(part of up to kChannels channels, whether it is the first).
template <class T, class Function>
LGF_INLINE void for_each_part(Part part, int64_t channels, Function&& function) {
  for (part.channel = 0; part.channel < channels; part.channel += kChannels<T>) {
    part.channels = channels - part.channel < kChannels<T> ? channels - part.channel : kChannels<T>;
    function(part);
  }
}

template <class T>
class RelationTask {
 public:
  RelationTask(const RelationCall& call, const RelationSums<T>& sums, char* scratch, int64_t b, const RelationTile& tile)
      : call_(call), arena_(scratch), buffers_(call, arena_), rows_(block(b, tile.row)), columns_(block(b, tile.column)) {
    const int64_t tokens = call.grid.frames * call.grid.cols;
    student_factors_ = sums.student + b * tokens;
    teacher_factors_ = sums.teacher + b * tokens;
  }

  // Returns the tile's part of the loss of its video; adds its part of the gradient.
  double run() {
    const bool diagonal = rows_.first == columns_.first;
    T* student = call_.clamps_student ? buffers_.student : buffers_.tile;
    write_weights<T>(call_, rows_, columns_, buffers_.weights);
    add_similarities(call_.teacher, teacher_factors_, call_.clamps_teacher ? T(1) : T(-1), false, buffers_.tile);
    if (call_.clamps_teacher) clamp_and_negate<T>(buffers_.tile, rows_.count, columns_.count);
    add_similarities(call_.student, student_factors_, T(1), !call_.clamps_student, student);
    const double loss = distances_of_tile(student);
    if (call_.gradient) add_gradient(diagonal);
    return diagonal ? loss / 2 : loss;
  }

 private:
  Part block(int64_t b, int64_t number) const {
    const int64_t* start = call_.rounds.starts + number;
    return {b, start[0], start[1] - start[0], 0, 0};
  }

  // tile (+)= sign * similarities of the rows and columns
  void add_similarities(const Tensor& f, const T* factors, T sign, bool accumulate, T* tile) {
    for_each_part<T>(rows_, f.channels, [&](const Part& rows) {
      Part columns = columns_;
      columns.channel = rows.channel, columns.channels = rows.channels;
      pack_tokens<T>(f, call_.grid, rows, factors, sign, buffers_.rows);
      pack_tokens<T>(f, call_.grid, columns, factors, T(1), buffers_.columns);
      pack_channels<T>(buffers_.columns, columns, buffers_.channels);
      const int64_t panels = rows.panels<T>();
      const Factor<T, kColumns<T>, 1> a{buffers_.rows, kTokenPanel<T>, panels, kColumns<T>};
      product(a, rows.count, buffers_.channels, panels * kColumns<T> * kColumns<T>, round_up(columns.count, kColumns<T>),
              accumulate || rows.channel > 0, tile, kPitch<T>);
    });
  }

  double distances_of_tile(const T* student) {
    const auto apply = call_.squared ? (call_.clamps_student ? distances<T, true, true> : distances<T, true, false>)
                                     : (call_.clamps_student ? distances<T, false, true> : distances<T, false, false>);
    return apply(call_, rows_, columns_, buffers_.weights, student, buffers_.tile);
  }

  void add_gradient(bool diagonal) {
    const Tensor& f = call_.student;
    const int64_t C = f.channels;
    T* gradient = static_cast<T*>(call_.gradient) + rows_.b * call_.grid.frames * call_.grid.cols * C;
    for_each_part<T>(columns_, C, [&](const Part& columns) {
      const bool packed = C <= kChannels<T>;  // the similarities were those of all channels
      if (!packed) pack_tokens<T>(f, call_.grid, columns, student_factors_, T(1), buffers_.columns);
      const Factor<T, kPitch<T>, 1> along{buffers_.tile, 0, 1, columns.count};
      product(along, rows_.count, buffers_.columns, kTokenPanel<T>, columns.channels, true,
              gradient + rows_.first * C + columns.channel, C);
      if (diagonal) return;
      Part rows = rows_;
      rows.channel = columns.channel, rows.channels = columns.channels;
      if (!packed) pack_tokens<T>(f, call_.grid, rows, student_factors_, T(1), buffers_.rows);
      const Factor<T, 1, kPitch<T>> down{buffers_.tile, 0, 1, rows.count};
      product(down, columns.count, buffers_.rows, kTokenPanel<T>, rows.channels, true,
              gradient + columns.first * C + rows.channel, C);
    });
  }

  const RelationCall& call_;
  Arena arena_;
  RelationBuffers<T> buffers_;
  Part rows_, columns_;
  const T* student_factors_;
  const T* teacher_factors_;
};

// Calls function(video, first token of the video, end) on threads, for all tokens.
template <class Function>
void for_each_token(const RelationCall& call, Function&& function) {
  const int64_t N = call.grid.cols, frames = call.grid.frames;
  for_each_thread(call.grid.batch * frames, call.threads, 0, [&](int64_t begin, int64_t end, char*) {
    for (int64_t frame = begin; frame < end; ++frame) function(frame / frames, frame % frames * N, (frame % frames + 1) * N);
  });
}

template <class T>
void prepare(const RelationCall& call, const RelationSums<T>& sums) {
  const int64_t tokens = call.grid.frames * call.grid.cols, C = call.student.channels;
  for_each_token(call, [&](int64_t b, int64_t first, int64_t end) {
    write_factors<T>(call.student, call, b, first, end, sums.student + b * tokens);
    write_factors<T>(call.teacher, call, b, first, end, sums.teacher + b * tokens);
    if (call.gradient) clear(static_cast<T*>(call.gradient) + (b * tokens + first) * C, (end - first) * C);
  });
}

// Turns the gradient of the normalised tokens into that of the tokens. Where the loss is not a number, no part of it is one.
template <class T>
void finish(const RelationCall& call, const RelationSums<T>& sums) {
  const int64_t tokens = call.grid.frames * call.grid.cols, C = call.student.channels;
  for_each_token(call, [&](int64_t b, int64_t first, int64_t end) {
    T* gradient = static_cast<T*>(call.gradient) + (b * tokens + first) * C;
    const T loss = static_cast<const T*>(call.losses)[b], nothing = loss - loss;
    if (nothing != 0)
      for (int64_t i = 0; i < (end - first) * C; ++i) gradient[i] = nothing;
    else if (call.cosine)
      with_video(call.student, call.grid, b, [&](const auto& video) {
        for (int64_t i = first; i < end; ++i, gradient += C)
          project_token<T>(video.token(i), C, sums.student[b * tokens + i], gradient);
      });
  });
}

template <class T>
void relation_forward(const RelationCall& call) {
  const Scratch memory(measure<RelationSums<T>>(call));
  Arena arena(memory.data());
  const RelationSums<T> sums(call, arena);
  const int64_t videos = call.grid.batch, tiles = sums.tile_count(call);
  prepare<T>(call, sums);
  const RelationRounds& rounds = call.rounds;
  for_each_round(rounds.ends, rounds.count, videos, call.threads, measure<RelationBuffers<T>>(call),
                 [&](int64_t tile, int64_t b, char* scratch) {
                   sums.losses[b * tiles + tile] = RelationTask<T>(call, sums, scratch, b, rounds.tiles[tile]).run();
                 });
  for (int64_t b = 0; b < videos; ++b) {
    double loss = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) loss += sums.losses[b * tiles + tile];
    static_cast<T*>(call.losses)[b] = static_cast<T>(loss);
  }
  if (call.gradient) finish<T>(call, sums);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
