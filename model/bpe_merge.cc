#include "model/bpe_merge.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <queue>

namespace mneme {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
// Up to here shifting small arrays is quicker than a heap.
constexpr size_t kShortUnit = 32;

BpeMerge Lookup(const BpeVocabulary& vocabulary, BpeSymbol left, BpeSymbol right) {
  const BpeMerge* merge = vocabulary.FindMerge(left, right);
  return merge == nullptr ? BpeMerge{kNoSymbol, kNoRank} : *merge;
}

void MergeShort(const BpeVocabulary& vocabulary, std::vector<BpeSymbol>* symbols,
                std::vector<uint32_t>* begins) {
  // pairs[i] is what symbols i and i + 1 become.
  std::array<BpeMerge, kShortUnit> pairs;
  BpeSymbol* s = symbols->data();
  size_t n = symbols->size();
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = Lookup(vocabulary, s[i], s[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) break;
    s[best] = pairs[best].result;
    std::copy(s + best + 2, s + n, s + best + 1);
    std::copy(begins->begin() + best + 2, begins->begin() + n, begins->begin() + best + 1);
    std::copy(pairs.begin() + best + 1, pairs.begin() + n - 1, pairs.begin() + best);
    --n;
    if (best > 0) pairs[best - 1] = Lookup(vocabulary, s[best - 1], s[best]);
    if (best + 1 < n) pairs[best] = Lookup(vocabulary, s[best], s[best + 1]);
  }
  symbols->resize(n);
  begins->resize(n);
}

// A heap of (rank, left index). An entry is stale when the pair that begins at its index has
// another rank by now; one that is stale but has the rank of the pair that stands there now stands
// for that pair.
void MergeLong(const BpeVocabulary& vocabulary, std::vector<BpeSymbol>* symbols,
               std::vector<uint32_t>* begins) {
  std::vector<BpeSymbol>& s = *symbols;
  const uint32_t n = static_cast<uint32_t>(s.size());
  std::vector<uint32_t> next(n), previous(n);
  std::vector<BpeMerge> pairs(n, BpeMerge{kNoSymbol, kNoRank});
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> agenda;
  const auto set_pair = [&](uint32_t left) {
    pairs[left] =
        next[left] == n ? BpeMerge{kNoSymbol, kNoRank} : Lookup(vocabulary, s[left], s[next[left]]);
    if (pairs[left].rank != kNoRank) agenda.push(uint64_t{pairs[left].rank} << 32 | left);
  };
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first: never read
    set_pair(i);
  }
  while (!agenda.empty()) {
    const auto rank = static_cast<uint32_t>(agenda.top() >> 32);
    const auto left = static_cast<uint32_t>(agenda.top());
    agenda.pop();
    if (pairs[left].rank != rank) continue;
    const uint32_t right = next[left];
    s[left] = pairs[left].result;
    next[left] = next[right];
    if (next[right] < n) previous[next[right]] = left;
    pairs[right].rank = kNoRank;
    set_pair(left);
    if (left > 0) set_pair(previous[left]);
  }
  size_t kept = 0;
  for (uint32_t i = 0; i < n; i = next[i]) {
    s[kept] = s[i];
    (*begins)[kept++] = (*begins)[i];
  }
  s.resize(kept);
  begins->resize(kept);
}

}  // namespace

void MergeSymbols(const BpeVocabulary& vocabulary, std::vector<BpeSymbol>* symbols,
                  std::vector<uint32_t>* begins) {
  if (symbols->size() <= kShortUnit) {
    MergeShort(vocabulary, symbols, begins);
  } else {
    MergeLong(vocabulary, symbols, begins);
  }
}

}  // namespace mneme
