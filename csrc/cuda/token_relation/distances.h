// Loss of pairs of tiles and, for a gradient, their blocks of coefficients (calls.h).
//
// A block takes one pair after another. The chunks of the teacher's and the student's features of all its pairs follow
// each other through shared memory, so that those of the next pair are copied while this one is finished and the tensor
// cores are idle for less time. Student and teacher have separate sums in the same order: equal features differ by exactly
// 0, whose sign is 0. Pairs all of whose weights are 0 are skipped: their sums and coefficients are not written.
//
// L2 would limit Hopper's kernels. Where all chunks of a row's features fit, a block takes stretches of pairs of one row, keeps
// the row's features in shared memory and copies only the columns': half of the bytes.
#pragma once

#include "plain.h"
#include "tiles.h"

namespace lgf {
namespace cuda {

struct DistancesParams {
  DistancesCall call;
  int tiles;
  int64_t places, blocks;  // of a video
  int stretch;             // a block takes 2^stretch places in a row; 0: one, and copies rows and columns of every pair
};

template <class Products>
struct Distances {
  using Params = DistancesParams;
  using T = typename Products::Number;
  using Coefficient = typename Products::Coefficient;
  static constexpr int kThreads = Products::kThreads, kBlocksPerSm = Products::kBlocksPerSm, kTile = Products::kTile;
  static constexpr int kStages = Products::stages(2), kStageBytes = 2 * Products::kOperandBytes;
  static constexpr int kPipelineBytes = (kStages * kStageBytes + 15) / 16 * 16;
  // Of this memory, in stretches: chunks of the row's features, and stages of the columns'.
  static constexpr int kKept = Products::kKept, kColumnStages = kKept ? 2 * kStages - kKept : kStages;
  // Facts of the tokens of the row and then of the column: norms of student, teacher and coefficients, and frames.
  static constexpr int kTokens = 2 * kTile, kNorms = 3 * kTokens;
  static constexpr int kSharedBytes =
      kPipelineBytes + (kNorms + kThreads / 32) * static_cast<int>(sizeof(T)) + kTokens * static_cast<int>(sizeof(int));

  static LGF_DEVICE void run(const Params& p, char* shared) {
    Loader loader(p, shared);
    for (int stage = 0; stage < stages(p) - 1; ++stage) loader.next();
    int step = 0;
    for (Place at(p); at.exists(p); at.move(p)) {
      const TileSpan rows(p.call.video, at.pair.row, kTile), columns(p.call.video, at.pair.column, kTile);
      T* norms = reinterpret_cast<T*>(shared + kPipelineBytes);
      int* frames = reinterpret_cast<int*>(norms + kNorms + kThreads / 32);
      load_tokens(p, at, norms, frames);
      T student[Products::kNumbers], teacher[Products::kNumbers];
      clear(student);
      clear(teacher);
      int chunk = 0;  // of the pair
      for (int c = 0; c < p.call.teacher.channels; c += Products::kChunk)
        multiply(p, loader, shared, chunk++, step++, teacher);
      for (int c = 0; c < p.call.student.channels; c += Products::kChunk)
        multiply(p, loader, shared, chunk++, step++, student);
      if (rows.frames() <= 2 && columns.frames() <= 2) {
        const CornerWeights<T> weights(p.call.video, rows, columns, static_cast<T>(p.call.scale));
        if (is_plain(p))
          finish<true>(p, at, weights, norms, student, teacher);
        else
          finish<false>(p, at, weights, norms, student, teacher);
      } else {
        const T* c = static_cast<const T*>(p.call.video.weight);
        const TableWeights<T> weights{c, static_cast<T>(p.call.scale), p.call.video.frames, frames, frames + kTile};
        finish<false>(p, at, weights, norms, student, teacher);
      }
    }
  }

  // Returns the logarithm of the places that a block takes in a row. Stretches must be many enough to keep all blocks busy alike,
  // and the chunks of a pair as many as are on their way, so that a row's chunk is not replaced before it has been multiplied.
  static int stretch_of(const DistancesCall& call, int64_t places_of_a_block) {
    const auto chunks_of = [](const Tensor& f) { return (f.channels + Products::kChunk - 1) / Products::kChunk; };
    const int chunks = chunks_of(call.student) + chunks_of(call.teacher);
    if (chunks > kKept || chunks < kColumnStages) return 0;
    int stretch = 0;
    while (stretch < 4 && places_of_a_block >> stretch >= 8) ++stretch;
    return stretch;
  }

 private:
  // A pair of tiles of a video with any weight, in the order in which the blocks of the launch take them.
  struct Place {
    int64_t number;  // among those of this block
    int b;
    Pair pair;

    LGF_DEVICE explicit Place(const Params& p) : number(0) { find(p); }
    LGF_DEVICE bool exists(const Params& p) const { return b < p.call.video.batch; }
    LGF_DEVICE void move(const Params& p) {
      ++number;
      find(p);
    }

   private:
    LGF_DEVICE void look(const Params& p) {
      const int64_t stretch = (number >> p.stretch) * block_count() + block_index();
      const int64_t place = (stretch << p.stretch) + (number & ((1 << p.stretch) - 1));
      b = static_cast<int>(place / p.places);
      pair = pair_at(place % p.places, p.call.rows, p.tiles, p.stretch ? 1 : kGroup);
    }

    // Each lane of a warp checks a place, so that pairs without weight cost little time.
    LGF_DEVICE void find(const Params& p) {
      const int lane = thread_index() % 32;
      for (number += lane;; number += 32) {
        look(p);
        const bool stop = !exists(p) || (pair.column < p.tiles && any_weight<T>(p.call.video, pair, kTile));
        int first = stop ? lane : 32;
        for (int mask = 16; mask > 0; mask /= 2) first = lesser(first, shuffle_xor(first, mask));
        if (first == 32) continue;
        number += first - lane;
        return look(p);
      }
    }
  };

  static LGF_DEVICE int stages(const Params& p) { return p.stretch ? kColumnStages : kStages; }

  // Where the operands of a chunk lie: number `chunk` of its pair and `stage` of all, modulo the stages.
  static LGF_DEVICE char* rows_at(const Params& p, char* shared, int chunk, int stage) {
    return p.stretch ? shared + chunk * Products::kOperandBytes : shared + stage * kStageBytes;
  }
  static LGF_DEVICE char* columns_at(const Params& p, char* shared, int stage) {
    return p.stretch ? shared + (kKept + stage) * Products::kOperandBytes
                 : shared + stage * kStageBytes + Products::kOperandBytes;
  }

  // Loads chunks ahead of the products.
  struct Loader {
    const Params& p;
    char* shared;
    Place at;
    bool student, new_row;
    int c0, chunk, stage;

    LGF_DEVICE Loader(const Params& params, char* memory)
        : p(params), shared(memory), at(params), student(false), new_row(true), c0(0), chunk(0), stage(0) {}

    // Begins to load the next chunk, if there is one.
    LGF_DEVICE void next() {
      if (at.exists(p)) {
        const Tensor& f = student ? p.call.student : p.call.teacher;
        if (new_row || !p.stretch) load(f, at.pair.row, rows_at(p, shared, chunk, stage));
        load(f, at.pair.column, columns_at(p, shared, stage));
        stage = stage + 1 < stages(p) ? stage + 1 : 0;
        advance(f.channels);
      }
      copy_commit();
    }

   private:
    LGF_DEVICE void load(const Tensor& f, int tile, char* operand) {
      const int64_t token = int64_t(tile) * kTile;
      Products::template load<Summed::along_rows>(
          {f.data, f.dtype, at.b * f.stride[0] + token * f.stride[3] + c0, f.stride[3],
           static_cast<int>(p.call.video.tokens - token), f.channels - c0},
          operand);
    }

    LGF_DEVICE void advance(int channels) {
      ++chunk;
      c0 += Products::kChunk;
      if (c0 < channels) return;
      c0 = 0;
      student = !student;
      if (student) return;
      const int row = at.pair.row, b = at.b;
      at.move(p);
      chunk = 0;
      new_row = at.pair.row != row || at.b != b;
    }
  };

  static LGF_DEVICE void clear(T (&sums)[Products::kNumbers]) {
    LGF_UNROLL
    for (int e = 0; e < Products::kNumbers; ++e) sums[e] = 0;
  }

  static LGF_DEVICE void multiply(const Params& p, Loader& loader, char* shared, int chunk, int step,
                                  T (&sums)[Products::kNumbers]) {
    if (p.stretch)
      copy_wait<kColumnStages - 2>();
    else
      copy_wait<kStages - 2>();
    Products::publish();
    sync_block();  // this chunk is there, and the one before has been multiplied by all
    const int stage = step % stages(p);
    const char *rows = rows_at(p, shared, chunk, stage), *columns = columns_at(p, shared, stage);
    Products::template begin<Summed::along_rows, Summed::along_rows>(rows, columns, sums);
    loader.next();
    Products::template end<Summed::along_rows, Summed::along_rows>(rows, columns, sums);
  }

  // Norms are 0 past the last token, and so are all differences there. Those of the pair before have been read: its last
  // barrier was later.
  static LGF_DEVICE void load_tokens(const Params& p, const Place& at, T* norms, int* frames) {
    const void* const sources[3] = {p.call.student_norms, p.call.teacher_norms, p.call.coefficient_norms};
    const int tokens = p.call.video.tokens;
    for (int n = thread_index(); n < kTokens; n += kThreads) {
      const int token = (n < kTile ? at.pair.row : at.pair.column) * kTile + n % kTile;
      const bool exists = token < tokens;
      LGF_UNROLL
      for (int source = 0; source < 3; ++source)
        norms[source * kTokens + n] =
            exists ? static_cast<const T*>(sources[source])[at.b * int64_t(tokens) + token] : T(0);
      frames[n] = exists ? token / p.call.video.frame_tokens : 0;
    }
  }

  // Returns whether differences count as they are, and no similarity is clamped: a third fewer instructions a number.
  static LGF_DEVICE bool is_plain(const Params& p) {
    return !p.call.squared && p.call.student_floor == -INFINITY && p.call.teacher_floor == -INFINITY;
  }

  // Returns a similarity of at least the floor. Times 0, so that -inf becomes NaN.
  static LGF_DEVICE T clamped(T similarity, T floor) { return similarity < floor ? similarity * 0 : similarity; }

  template <bool kPlain, class Weights>
  static LGF_DEVICE void finish(const Params& p, const Place& at, const Weights& weights, T* norms,
                                const T (&student)[Products::kNumbers], const T (&teacher)[Products::kNumbers]) {
    const T margin = static_cast<T>(p.call.margin);
    const T student_floor = static_cast<T>(p.call.student_floor), teacher_floor = static_cast<T>(p.call.teacher_floor);
    const bool squared = !kPlain && p.call.squared;
    const T *r = norms, *q = norms + kTokens, *s = norms + 2 * kTokens;
    T total = 0;
    LGF_UNROLL
    for (int first = 0; first < Products::kNumbers; first += Products::kTogether) {
      T g[Products::kTogether];
      LGF_UNROLL
      for (int k = 0; k < Products::kTogether; ++k) {
        const int e = first + k, i = Products::row(e), j = Products::column(e);
        // Rounded before the subtraction: fused, a product would differ from an equal one.
        const T s_z = rounded_product(student[e] * r[i], r[kTile + j]);
        const T s_m = rounded_product(teacher[e] * q[i], q[kTile + j]);
        const T d = kPlain ? s_z - s_m : clamped(s_z, student_floor) - clamped(s_m, teacher_floor);
        const T w = weights.at(i, j), own = 2 * s[i], other = s[kTile + j];
        const bool counts = w != T(0) && !(fabs(d) <= margin);  // true for NaN
        const T excess = fabs(d) - margin, slope = squared ? 2 * excess : T(1);
        if (counts) total += w * (squared ? excess * excess : excess);
        const bool kept = kPlain || !(s_z < student_floor);
        // NaN where d is not finite.
        const T by_similarity = (times_sign(w * slope, d) + d * 0) * own * other;
        g[k] = counts && kept ? by_similarity : T(0);
      }
      if (p.call.coefficients) Products::store(block(p, at), first, g);
    }
    store_sum(p, at, total, norms + kNorms);
  }

  static LGF_DEVICE void store_sum(const Params& p, const Place& at, T total, T* of_warps) {
    for (int mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
    if (thread_index() % 32 == 0) of_warps[thread_index() / 32] = total;
    sync_block();  // the sums of all warps are there, and the norms have been read
    if (thread_index() > 0) return;
    T sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warps[warp];
    sum_of(p, at) = at.pair.row == at.pair.column ? sum : 2 * sum;
  }

  static LGF_DEVICE T& sum_of(const Params& p, const Place& at) {
    return static_cast<T*>(p.call.sums)[at.b * p.call.sums_stride + block_number(at.pair, 0, p.tiles)];
  }

  static LGF_DEVICE Coefficient* block(const Params& p, const Place& at) {
    const int64_t number = at.b * p.blocks + block_number(at.pair, p.call.rows.first, p.tiles);
    return static_cast<Coefficient*>(p.call.coefficients) + number * kTile * kTile;
  }
};

}  // namespace cuda
}  // namespace lgf
