#include "client/cli/top_view.h"

#include <algorithm>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(TopViewTest, ShowsSharesRatesAndNoControlCharacters) {
  v1::Activity before;
  before.mutable_time()->set_seconds(1000);
  const auto set = [](v1::Activity& activity, const std::string& series, double value) {
    v1::Activity::Sample* sample = activity.add_samples();
    sample->set_series(series);
    sample->set_value(value);
  };
  set(before, "mneme_ingest_bytes_total", 1000);
  set(before, "mneme_requests_total{code=\"OK\",method=\"Retrieve\"}", 5);
  v1::Activity now;
  now.mutable_time()->set_seconds(1002);
  set(now, "mneme_ingest_bytes_total", 21000);
  set(now, "mneme_requests_total{code=\"OK\",method=\"Retrieve\"}", 25);
  set(now, "mneme_requests_total{code=\"NOT_FOUND\",method=\"Retrieve\"}", 4);
  set(now, "mneme_tier_used_bytes{tier=\"host\"}", 250e6);
  set(now, "mneme_tier_limit_bytes{tier=\"host\"}", 1e9);
  set(now, "mneme_page_reads_total{tier=\"host\"}", 75);
  set(now, "mneme_page_reads_total{tier=\"disk\"}", 25);
  set(now, "mneme_engine_queue_depth{queue=\"segments\"}", 7);
  set(now, "mneme_engine_queue_limit{queue=\"segments\"}", 64);
  set(now, "mneme_watermark_state{resource=\"disk\"}", 2);
  set(now, "mneme_ingest_held", 1);
  set(now, "mneme_watermark_refused_total", 3);
  const double infinity = std::numeric_limits<double>::infinity();
  set(now, "mneme_quota_used{quota=\"documents\",tenant=\"a\"}", 40);
  set(now, "mneme_quota_limit{quota=\"documents\",tenant=\"a\"}", 50);
  set(now, "mneme_quota_limit{quota=\"readers\",tenant=\"a\"}", infinity);
  set(now, "mneme_tier_used_bytes{tier=\"host_landmarks\"}", 5e6);
  set(now, "mneme_tier_limit_bytes{tier=\"host_landmarks\"}", infinity);
  v1::SlowRequest* slow = now.add_slow_requests();
  slow->set_method("Retrieve");
  slow->set_resource("tenants/default/memories/\x1b]0;evil\x07");
  slow->set_seconds(1.5);
  slow->set_code("OK");
  const std::string view = RenderTop(now, &before, 120);
  EXPECT_THAT(view, HasSubstr("host       250.0 MB of 1.00 GB (25 %)"));
  EXPECT_THAT(view, HasSubstr("disk 25 (25 %), host 75 (75 %)"));
  EXPECT_THAT(view, HasSubstr("segments 7/64"));
  EXPECT_THAT(view, HasSubstr("host_landmarks 5.0 MB\n"));
  EXPECT_THAT(view, HasSubstr("disk refused, streams wait, refused 3 by quotas and watermarks"));
  EXPECT_THAT(view, HasSubstr("tenant=\"a\"} 40 of 50 (80 %)"));
  EXPECT_THAT(view, Not(HasSubstr("readers")));
  EXPECT_THAT(view, HasSubstr("12.0 requests/s, ingest 10.0 kB/s"));
  EXPECT_THAT(view, HasSubstr("1.500 s  Retrieve"));
  EXPECT_THAT(view, Not(HasSubstr("\x1b")));
  EXPECT_THAT(RenderTop(now, nullptr, 120), Not(HasSubstr("requests/s")));
  size_t longest = 0, begin = 0;
  const std::string narrow = RenderTop(now, &before, 30);
  for (size_t end = narrow.find('\n'); end != std::string::npos; end = narrow.find('\n', begin)) {
    longest = std::max(longest, end - begin);
    begin = end + 1;
  }
  EXPECT_LE(longest, 32u) << "an ellipsis has three bytes";
}

}  // namespace
}  // namespace mneme
