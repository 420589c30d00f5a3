// The merge loop of byte-pair encoding over one unit of text.

#ifndef MNEME_MODEL_BPE_MERGE_H_
#define MNEME_MODEL_BPE_MERGE_H_

#include <cstdint>
#include <vector>

#include "model/bpe_vocabulary.h"

namespace mneme {

// Merges neighbours until no two merge any more: always the pair of the lowest rank, of equal ranks
// the leftmost. `symbols` and `begins` (of each symbol, any measure; a merged symbol keeps that of
// its left part) have one length n and are changed in place. n log n for long units, n^2 with a
// small constant for short ones.
void MergeSymbols(const BpeVocabulary& vocabulary, std::vector<BpeSymbol>* symbols,
                  std::vector<uint32_t>* begins);

}  // namespace mneme

#endif  // MNEME_MODEL_BPE_MERGE_H_
