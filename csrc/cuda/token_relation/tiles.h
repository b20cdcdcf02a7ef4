// Pairs of tiles of a video, their order and their weights.
#pragma once

#include "../common/tensor.h"
#include "calls.h"

namespace lgf {
namespace cuda {

// Rows of tiles side by side in launch order, so that the columns they share are read from the L2 cache.
constexpr int kGroup = 4;

LGF_HOST_DEVICE int lesser(int a, int b) { return a < b ? a : b; }
LGF_HOST_DEVICE int greater(int a, int b) { return a > b ? a : b; }

struct Pair {
  int row, column;
};

// Returns the number of a pair's block among those of rows first, first + 1, ...: row by row, from the diagonal on.
LGF_HOST_DEVICE int64_t block_number(Pair pair, int first, int tiles) {
  return int64_t(pair.row - first) * (2 * tiles - first - pair.row + 1) / 2 + (pair.column - pair.row);
}

LGF_HOST_DEVICE int64_t blocks_of(Rows rows, int tiles) { return block_number({rows.end, rows.end}, rows.first, tiles); }

// Returns the number of places of a launch. The a-th row is followed by the a-th from the end: all of these couples are
// equally long, and a rectangle of places covers them, some of which may be left over.
LGF_HOST_DEVICE int64_t places(Rows rows, int tiles) {
  const int couples = (rows.end - rows.first + 1) / 2, width = 2 * tiles - rows.first - rows.end + 1;
  return int64_t((couples + kGroup - 1) / kGroup) * kGroup * width;
}

// Returns the pair at a place, with `group` rows of places side by side; column = tiles where there is none.
LGF_DEVICE Pair pair_at(int64_t place, Rows rows, int tiles, int group) {
  const int width = 2 * tiles - rows.first - rows.end + 1;
  const int a = static_cast<int>(place / (group * width)) * group + static_cast<int>(place % group);
  const int step = static_cast<int>(place % (group * width)) / group;
  const int top = rows.first + a, bottom = rows.end - 1 - a;
  const bool upper = step < tiles - top, exists = top < bottom || (top == bottom && upper);
  const Pair pair = upper ? Pair{top, top + step} : Pair{bottom, bottom + step - (tiles - top)};
  return exists ? pair : Pair{pair.row, tiles};
}

// The tokens of a tile and the frames they are in.
struct TileSpan {
  int begin, frame, last_frame;

  LGF_DEVICE TileSpan(const Video& video, int tile, int tile_tokens)
      : begin(tile * tile_tokens), frame(begin / video.frame_tokens) {
    const int last = begin + tile_tokens < video.tokens ? begin + tile_tokens - 1 : video.tokens - 1;
    last_frame = last / video.frame_tokens;
  }

  LGF_DEVICE int frames() const { return last_frame - frame + 1; }
};

// Weights, times a scale, of the i-th token of a tile and the j-th of another. For tiles in at most two frames, as all tiles no
// larger than a frame are, they are four numbers.
template <class T>
struct CornerWeights {
  int row_end, column_end;  // of the first frame of either
  T near_near, near_far, far_near, far_far;

  LGF_DEVICE CornerWeights(const Video& video, const TileSpan& rows, const TileSpan& columns, T scale)
      : row_end((rows.frame + 1) * video.frame_tokens - rows.begin),
        column_end((columns.frame + 1) * video.frame_tokens - columns.begin) {
    const T* c = static_cast<const T*>(video.weight);
    const T *near = c + int64_t(rows.frame) * video.frames, *far = c + int64_t(rows.last_frame) * video.frames;
    near_near = scale * near[columns.frame];
    near_far = scale * near[columns.last_frame];
    far_near = scale * far[columns.frame];
    far_far = scale * far[columns.last_frame];
  }

  LGF_DEVICE T at(int i, int j) const {
    const T near = i < row_end ? near_near : far_near, far = i < row_end ? near_far : far_far;  // once a row, for all columns
    return j < column_end ? near : far;
  }
};

// Weights of other tiles, by the frames of their tokens.
template <class T>
struct TableWeights {
  const T* c;
  T scale;
  int frames;
  const int *row_frames, *column_frames;

  LGF_DEVICE T at(int i, int j) const { return scale * c[int64_t(row_frames[i]) * frames + column_frames[j]]; }
};

// Returns whether any weight between two tiles is not 0.
template <class T>
LGF_DEVICE bool any_weight(const Video& video, Pair pair, int tile_tokens) {
  const TileSpan rows(video, pair.row, tile_tokens), columns(video, pair.column, tile_tokens);
  for (int f = rows.frame; f <= rows.last_frame; ++f) {
    const T* c = static_cast<const T*>(video.weight) + int64_t(f) * video.frames;
    for (int g = columns.frame; g <= columns.last_frame; ++g)
      if (c[g] != T(0)) return true;
  }
  return false;
}

// Returns tiles begin .. end - 1: from the first to the last with a token in a frame of weight towards a tile's. All lanes of
// the warp get the result.
template <class T>
LGF_DEVICE Rows reach(const Video& video, const TileSpan& tile, int tile_tokens) {
  const T* c = static_cast<const T*>(video.weight);
  int begin = video.tokens, end = 0;
  for (int f = tile.frame; f <= tile.last_frame; ++f) {
    for (int g = thread_index() % 32; g < video.frames; g += 32) {
      if (c[int64_t(f) * video.frames + g] == T(0)) continue;
      begin = lesser(begin, g * video.frame_tokens);
      end = greater(end, (g + 1) * video.frame_tokens);
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    begin = lesser(begin, shuffle_xor(begin, mask));
    end = greater(end, shuffle_xor(end, mask));
  }
  return {begin / tile_tokens, (end + tile_tokens - 1) / tile_tokens};
}

}  // namespace cuda
}  // namespace lgf
