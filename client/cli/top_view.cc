#include "client/cli/top_view.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include <google/protobuf/util/time_util.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/cli/terminal.h"

namespace mneme {
namespace {

using google::protobuf::util::TimeUtil;

class Samples {
 public:
  explicit Samples(const v1::Activity& activity) {
    for (const auto& sample : activity.samples()) values_[sample.series()] = sample.value();
  }

  double Value(const std::string& series) const {
    const auto found = values_.find(series);
    return found == values_.end() ? 0 : found->second;
  }
  // Over all labels.
  double Sum(const std::string& name) const {
    double sum = 0;
    for (const auto& [series, value] : values_) {
      if (series == name || absl::StartsWith(series, name + "{")) sum += value;
    }
    return sum;
  }
  // Labels, as they stand there, and values of a metric.
  std::vector<std::pair<std::string, double>> All(const std::string& name) const {
    std::vector<std::pair<std::string, double>> found;
    for (const auto& [series, value] : values_) {
      if (absl::StartsWith(series, name + "{"))
        found.emplace_back(series.substr(name.size()), value);
    }
    return found;
  }
  // Values of the only label `label` of a metric, with the value of each.
  std::vector<std::pair<std::string, double>> By(const std::string& name,
                                                 const std::string& label) const {
    const std::string prefix = absl::StrCat(name, "{", label, "=\"");
    std::vector<std::pair<std::string, double>> found;
    for (const auto& [series, value] : values_) {
      if (!absl::StartsWith(series, prefix) || !absl::EndsWith(series, "\"}")) continue;
      found.emplace_back(series.substr(prefix.size(), series.size() - prefix.size() - 2), value);
    }
    return found;
  }

 private:
  std::map<std::string, double> values_;
};

double SecondsBetween(const v1::Activity& before, const v1::Activity& now) {
  return static_cast<double>(TimeUtil::TimestampToNanoseconds(now.time()) -
                             TimeUtil::TimestampToNanoseconds(before.time())) /
         1e9;
}

std::string Share(double used, double limit) {
  return limit > 0 ? absl::StrFormat(" (%.0f %%)", 100 * used / limit) : "";
}

}  // namespace

std::string RenderTop(const v1::Activity& now, const v1::Activity* before, int columns) {
  const Samples samples(now);
  std::string text;
  const auto line = [&](const std::string& what, const std::string& value) {
    absl::StrAppend(
        &text, Shorten(EscapeForTerminal(absl::StrFormat("%-10s %s", what, value)), columns), "\n");
  };
  line("time", TimeUtil::ToString(now.time()));
  for (const auto& [tier, used] : samples.By("mneme_tier_used_bytes", "tier")) {
    const double limit = samples.Value(absl::StrCat("mneme_tier_limit_bytes{tier=\"", tier, "\"}"));
    line(tier, absl::StrCat(HumanBytes(used),
                            std::isfinite(limit)
                                ? absl::StrCat(" of ", HumanBytes(limit), Share(used, limit))
                                : ""));
  }
  std::string pages;
  const double asked = samples.Sum("mneme_page_reads_total");
  for (const auto& [tier, count] : samples.By("mneme_page_reads_total", "tier")) {
    absl::StrAppend(&pages, pages.empty() ? "" : ", ", tier, " ",
                    WithCommas(static_cast<int64_t>(count)), Share(count, asked));
  }
  line(
      "pages",
      absl::StrCat(pages, ", derived again ",
                   WithCommas(static_cast<int64_t>(samples.Value("mneme_pages_rederived_total")))));
  std::string queues;
  for (const auto& [queue, depth] : samples.By("mneme_engine_queue_depth", "queue")) {
    const double limit =
        samples.Value(absl::StrCat("mneme_engine_queue_limit{queue=\"", queue, "\"}"));
    absl::StrAppend(&queues, queues.empty() ? "" : ", ", queue, " ",
                    WithCommas(static_cast<int64_t>(depth)), "/",
                    WithCommas(static_cast<int64_t>(limit)));
  }
  line("queues", queues);
  static constexpr const char* kStates[] = {"normal", "slowed", "refused"};
  std::string marks;
  for (const auto& [resource, state] : samples.By("mneme_watermark_state", "resource")) {
    absl::StrAppend(&marks, marks.empty() ? "" : ", ", resource, " ",
                    kStates[std::clamp(static_cast<int>(state), 0, 2)]);
  }
  line("ingest",
       absl::StrCat(
           marks, samples.Value("mneme_ingest_held") > 0 ? ", streams wait" : "", ", refused ",
           WithCommas(static_cast<int64_t>(samples.Sum("mneme_quota_refused_total") +
                                           samples.Value("mneme_watermark_refused_total"))),
           " by quotas and watermarks"));
  for (const auto& [labels, limit] : samples.All("mneme_quota_limit")) {
    if (!std::isfinite(limit)) continue;
    const double used = samples.Value(absl::StrCat("mneme_quota_used", labels));
    line("quota", absl::StrCat(labels, " ", WithCommas(static_cast<int64_t>(used)), " of ",
                               WithCommas(static_cast<int64_t>(limit)), Share(used, limit)));
  }
  line("requests",
       absl::StrCat(WithCommas(static_cast<int64_t>(samples.Sum("mneme_requests_in_flight"))),
                    " under way, ",
                    WithCommas(static_cast<int64_t>(samples.Value("mneme_ingest_streams"))),
                    " of them Ingest streams"));
  const double seconds = before == nullptr ? 0 : SecondsBetween(*before, now);
  if (seconds > 0) {
    const Samples earlier(*before);
    const auto rate = [&](const std::string& name) {
      return (samples.Sum(name) - earlier.Sum(name)) / seconds;
    };
    line("rates",
         absl::StrFormat("%.1f requests/s, ingest %s/s and %.0f tokens/s, %.1f generated tokens/s, "
                         "%.3g landmarks/s",
                         rate("mneme_requests_total"), HumanBytes(rate("mneme_ingest_bytes_total")),
                         rate("mneme_ingest_tokens_total"), rate("mneme_generated_tokens_total"),
                         rate("mneme_landmarks_scanned_total")));
  }
  line("damage",
       absl::StrCat(WithCommas(static_cast<int64_t>(samples.Sum("mneme_scrub_damage_left"))),
                    " left by the last check of the store"));
  absl::StrAppend(&text, "\n", Shorten("slowest requests of the last minutes", columns), "\n");
  for (const auto& slow : now.slow_requests()) {
    absl::StrAppend(
        &text,
        Shorten(EscapeForTerminal(absl::StrFormat("%9.3f s  %-14s %-18s %s", slow.seconds(),
                                                  slow.method(), slow.code(), slow.resource())),
                columns),
        "\n");
  }
  return text;
}

Json ActivityJson(const v1::Activity& activity) {
  Json samples = Json::object();
  for (const auto& sample : activity.samples()) samples[sample.series()] = sample.value();
  Json slow_requests = Json::array();
  for (const auto& slow : activity.slow_requests()) {
    slow_requests.push_back({{"method", slow.method()},
                             {"resource", slow.resource()},
                             {"end_time", TimeUtil::ToString(slow.end_time())},
                             {"seconds", slow.seconds()},
                             {"code", slow.code()}});
  }
  return {{"time", TimeUtil::ToString(activity.time())},
          {"samples", samples},
          {"slow_requests", slow_requests}};
}

}  // namespace mneme
