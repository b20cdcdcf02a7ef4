// The tiles of a video in rounds, within which no two write to the gradient of the same block.
//
// A block gets its sums in the order of the rounds, however many threads there are: threads change no bit of the gradient,
// and need neither sums of their own nor atomics. With all tiles there are as many rounds as blocks, and round r has the
// tiles with row + column = r modulo the blocks: each block once. Where tiles are left out, later ones move up.
#pragma once

#include <vector>

#include "calls.h"

namespace lgf {

struct RelationSchedule {
  std::vector<RelationTile> tiles;
  std::vector<std::int64_t> ends;

  RelationRounds rounds() const { return {tiles.data(), ends.data(), static_cast<std::int64_t>(ends.size())}; }
};

// Whether any two frames f, g of tokens of the two blocks have a weight.
template <class T>
bool has_weight(const T* weights, std::int64_t frames, std::int64_t frame_tokens, std::int64_t block,
                const RelationTile& tile) {
  const auto first = [&](std::int64_t number) { return number * block / frame_tokens; };
  const auto last = [&](std::int64_t number) {
    const std::int64_t frame = ((number + 1) * block - 1) / frame_tokens;
    return frame < frames ? frame : frames - 1;
  };
  for (std::int64_t f = first(tile.row); f <= last(tile.row); ++f)
    for (std::int64_t g = first(tile.column); g <= last(tile.column); ++g)
      if (weights[f * frames + g] != 0) return true;
  return false;
}

// Schedules the tiles that have a weight in (F, F) `weights`, NaN included.
template <class T>
RelationSchedule schedule(const T* weights, std::int64_t frames, std::int64_t frame_tokens, std::int64_t block) {
  const std::int64_t blocks = (frames * frame_tokens + block - 1) / block;
  std::vector<std::vector<RelationTile>> rounds;
  std::vector<std::vector<bool>> taken;  // by round and block
  for (std::int64_t sum = 0; sum < blocks; ++sum)
    for (std::int64_t row = 0; row < blocks; ++row) {
      const RelationTile tile{row, (sum - row + blocks) % blocks};
      if (tile.column < row || !has_weight(weights, frames, frame_tokens, block, tile)) continue;
      std::size_t r = 0;
      while (r < rounds.size() && (taken[r][tile.row] || taken[r][tile.column])) ++r;
      if (r == rounds.size()) {
        rounds.emplace_back();
        taken.emplace_back(blocks, false);
      }
      rounds[r].push_back(tile);
      taken[r][tile.row] = taken[r][tile.column] = true;
    }
  RelationSchedule result;
  for (const auto& round : rounds) {
    result.tiles.insert(result.tiles.end(), round.begin(), round.end());
    result.ends.push_back(static_cast<std::int64_t>(result.tiles.size()));
  }
  return result;
}

}  // namespace lgf
