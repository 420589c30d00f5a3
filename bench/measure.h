// Shared by the benchmarks: timing by repetition, medians with their spread, and a line about the
// machine.

#ifndef MNEME_BENCH_MEASURE_H_
#define MNEME_BENCH_MEASURE_H_

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace mneme::bench {

struct Spread {
  double median = 0, min = 0, max = 0;
};

inline Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

// Seconds of one call of `work`.
inline double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs the works in turn, A B C A B C .., after one warm-up of each, so that a drift of the
// machine's speed hits all alike.
inline std::vector<Spread> MeasureInTurn(int repetitions,
                                         const std::vector<std::function<void()>>& works) {
  std::vector<std::vector<double>> seconds(works.size());
  for (const auto& work : works) work();
  for (int i = 0; i < repetitions; ++i) {
    for (size_t w = 0; w < works.size(); ++w) seconds[w].push_back(Seconds(works[w]));
  }
  std::vector<Spread> spreads;
  for (auto& s : seconds) spreads.push_back(SpreadOf(std::move(s)));
  return spreads;
}

// "model name, N hardware threads".
inline std::string Machine() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, model = "unknown processor";
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) == 0) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  return model + ", " + std::to_string(std::thread::hardware_concurrency()) + " hardware threads";
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_MEASURE_H_
