// How a video is cut into blocks, and the order of its tiles: the pairs of blocks that have a weight.
//
// The tiles come in rounds, within which no two write to the gradient of the same block. A block gets its sums in the order of
// the rounds, however many threads there are: threads change no bit of the gradient, and need neither sums of their own nor
// atomics. With all tiles there are as many rounds as blocks, and round r has the tiles with row + column = r modulo the
// blocks: each block once. Where tiles are left out, later ones move up.
#pragma once

#include <algorithm>
#include <vector>

#include "calls.h"

namespace lgf {

// Cuts a video into blocks of at most `block` tokens, and orders its tiles.
template <class T>
class RelationSchedule {
 public:
  // `weights` (frames, frames); NaN is a weight.
  RelationSchedule(const T* weights, std::int64_t frames, std::int64_t frame_tokens, std::int64_t block)
      : weights_(weights), frames_(frames), frame_tokens_(frame_tokens), block_(block) {
    starts_ = best_cut();
    place();
  }

  RelationRounds rounds() const {
    return {starts_.data(), tiles_.data(), ends_.data(), static_cast<std::int64_t>(ends_.size())};
  }

 private:
  using Starts = std::vector<std::int64_t>;

  // Products of a tile take as long as if each side had so many tokens more: those that fill its last rows and columns.
  static constexpr std::int64_t kRest = 16;
  // Least tokens of a block of several frames.
  static constexpr std::int64_t kLeast = 32;

  // Whole blocks wherever frames end if all pairs have a weight; else the cut whose tiles with a weight are the fewest pairs.
  Starts best_cut() const {
    Starts best = cut(frames_ * frame_tokens_);
    if (std::find(weights_, weights_ + frames_ * frames_, T(0)) == weights_ + frames_ * frames_) return best;
    std::int64_t least = cost(best), group = std::max<std::int64_t>(1, kLeast / frame_tokens_);
    do {
      const Starts starts = cut(group * frame_tokens_);
      const std::int64_t given = cost(starts);
      if (given < least) best = starts, least = given;
      group *= 2;
    } while (group * frame_tokens_ <= block_);
    return best;
  }

  // Cuts runs of `run` tokens into the fewest parts.
  Starts cut(std::int64_t run) const {
    const std::int64_t tokens = frames_ * frame_tokens_, parts = (run + block_ - 1) / block_;
    const std::int64_t even = ((run + parts - 1) / parts + kRest - 1) / kRest * kRest;
    const std::int64_t part = run == tokens ? block_ : std::min(even, block_);
    Starts starts;
    for (std::int64_t first = 0; first < tokens; first += run)
      for (std::int64_t start = first; start < std::min(first + run, tokens); start += part) starts.push_back(start);
    starts.push_back(tokens);
    return starts;
  }

  std::int64_t cost(const Starts& starts) const {
    const std::int64_t blocks = static_cast<std::int64_t>(starts.size()) - 1;
    const auto side = [&](std::int64_t number) { return starts[number + 1] - starts[number] + kRest; };
    std::int64_t sum = 0;
    for (std::int64_t row = 0; row < blocks; ++row)
      for (std::int64_t column = row; column < blocks; ++column)
        if (has_weight(starts, {row, column})) sum += side(row) * side(column);
    return sum;
  }

  // Whether any two frames f, g of tokens of the two blocks have a weight.
  bool has_weight(const Starts& starts, const RelationTile& tile) const {
    const auto first = [&](std::int64_t number) { return starts[number] / frame_tokens_; };
    const auto last = [&](std::int64_t number) { return (starts[number + 1] - 1) / frame_tokens_; };
    for (std::int64_t f = first(tile.row); f <= last(tile.row); ++f)
      for (std::int64_t g = first(tile.column); g <= last(tile.column); ++g)
        if (weights_[f * frames_ + g] != 0) return true;
    return false;
  }

  void place() {
    const std::int64_t blocks = static_cast<std::int64_t>(starts_.size()) - 1;
    std::vector<std::vector<RelationTile>> rounds;
    std::vector<std::vector<bool>> taken;  // by round and block
    for (std::int64_t sum = 0; sum < blocks; ++sum)
      for (std::int64_t row = 0; row < blocks; ++row) {
        const RelationTile tile{row, (sum - row + blocks) % blocks};
        if (tile.column < row || !has_weight(starts_, tile)) continue;
        std::size_t r = 0;
        while (r < rounds.size() && (taken[r][tile.row] || taken[r][tile.column])) ++r;
        if (r == rounds.size()) {
          rounds.emplace_back();
          taken.emplace_back(blocks, false);
        }
        rounds[r].push_back(tile);
        taken[r][tile.row] = taken[r][tile.column] = true;
      }
    for (const auto& round : rounds) {
      tiles_.insert(tiles_.end(), round.begin(), round.end());
      ends_.push_back(static_cast<std::int64_t>(tiles_.size()));
    }
  }

  const T* weights_;
  std::int64_t frames_, frame_tokens_, block_;
  Starts starts_;
  std::vector<RelationTile> tiles_;
  std::vector<std::int64_t> ends_;
};

}  // namespace lgf
