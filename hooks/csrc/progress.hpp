// How far requests are and how long they still take: what was sighted of one request, and what past ones teach.
//
// A position is (steps done, checkpoint passed): a decode loop goes from step to step, a single forward from checkpoint
// to checkpoint (the modules chosen by hooks/checkpoints.py). Times are learnt apart for stretches with the gate closed
// by this job all the while (undisturbed) and for others. Not for several threads at once; allocates nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "recent_values.hpp"

namespace herald {

constexpr uint32_t kCheckpoints = 7;
constexpr uint32_t kMostSteps = 0xffff;

// The 20 low bits of a progress word; they grow as the request goes on.
constexpr uint32_t position_of(uint32_t steps, uint32_t checkpoint) { return steps << 4 | checkpoint; }
constexpr uint32_t steps_at(uint32_t position) { return position >> 4; }
constexpr uint32_t checkpoint_at(uint32_t position) { return position & 15; }
constexpr uint32_t kPositionBits = 20;

struct Sighting {
  int64_t at_ns;
  uint32_t position;
};

// When a request was where. Of a long one every second sighting is dropped, again and again.
class Trace {
 public:
  void start() {
    count_ = 0;
    stride_ = 1;
    skipped_ = 0;
    last_ = {0, 0};
  }

  void add(int64_t at_ns, uint32_t position) {
    last_ = {at_ns, position};
    if (++skipped_ < stride_) return;
    skipped_ = 0;
    if (count_ == kMost) {
      for (uint32_t i = 0; i < kMost / 2; ++i) kept_[i] = kept_[2 * i + 1];
      count_ = kMost / 2;
      stride_ *= 2;
    }
    kept_[count_++] = last_;
  }

  const Sighting* begin() const { return kept_; }
  const Sighting* end() const { return kept_ + count_; }
  const Sighting& last() const { return last_; }  // position 0: there is none

 private:
  static constexpr uint32_t kMost = 24;
  Sighting kept_[kMost];
  uint32_t count_ = 0;
  uint32_t stride_ = 1;
  uint32_t skipped_ = 0;
  Sighting last_{0, 0};
};

// One duration (ns), learnt apart for undisturbed stretches.
class LearntTime {
 public:
  static constexpr uint32_t kFewest = 20;  // below, a p99 is the longest of a few

  void add(int64_t ns, bool undisturbed) {
    (undisturbed ? alone_ : beside_).add(static_cast<uint64_t>(ns > 0 ? ns : 0) >> kShift);
    // Requests change: undisturbed times that nothing has confirmed for long are no promise any more.
    stale_ = undisturbed ? 0 : stale_ + 1;
    if (stale_ > RecentValues::kMost && alone_.count() > 0) alone_.clear();
  }

  void clear() { *this = LearntTime(); }
  bool ready() const { return alone_.count() >= kFewest || beside_.count() >= kFewest; }

  // Quantile of those longer than `above_ns`; of undisturbed ones if wanted and enough. -1: there are none.
  int64_t quantile_ns(uint32_t ppm, bool undisturbed, bool upper_edge, int64_t above_ns = -1) const {
    if (!ready()) return -1;
    const RecentValues& wanted = undisturbed ? alone_ : beside_;
    const RecentValues& other = undisturbed ? beside_ : alone_;
    const int64_t above = above_ns < 0 ? -1 : above_ns >> kShift;
    const int64_t found = (wanted.count() >= kFewest ? wanted : other).quantile(ppm, above, upper_edge);
    return found < 0 ? -1 : in_ns(found, upper_edge);
  }

  // Quantile of undisturbed ones and nothing else; -1: there are too few.
  int64_t alone_ns(uint32_t ppm, bool upper_edge) const {
    if (alone_.count() < kFewest) return -1;
    return in_ns(alone_.quantile(ppm, -1, upper_edge), upper_edge);
  }

 private:
  static constexpr uint32_t kShift = 6;  // 64 ns

  static int64_t in_ns(int64_t value, bool upper_edge) {
    return (value << kShift) + (upper_edge ? (1 << kShift) - 1 : 0);
  }

  RecentValues alone_;
  RecentValues beside_;
  uint32_t stale_ = 0;
};

struct FinishedRequest {
  int64_t begin_ns;
  int64_t end_ns;
  uint32_t steps;
  int64_t undisturbed_since_ns;  // the gate was closed from then to the end; INT64_MAX: it was not
};

class ProgressModel {
 public:
  static constexpr uint32_t kMedian = 500'000;

  // The longest that a request at `position` (0: all of it) still takes alone, at a quantile; -1: not known. Never
  // shorter than what was learnt of a later checkpoint.
  int64_t bound_ns(uint32_t position, uint32_t ppm) const {
    if (steps_at(position) > 0) return by_steps_ns(steps_at(position), ppm, true, true);
    int64_t longest = -1;
    for (uint32_t c = checkpoint_at(position); c <= kCheckpoints; ++c) {
      longest = std::max(longest, from_[c].quantile_ns(ppm, true, true));
    }
    for (uint32_t c = checkpoint_at(position); longest < 0 && c-- > 0;) longest = from_[c].quantile_ns(ppm, true, true);
    return longest;
  }

  // What a request that reached `position` `since_ns` ago most likely still takes; -1: not known.
  int64_t expected_ns(uint32_t position, int64_t since_ns, bool undisturbed) const {
    if (steps_at(position) > 0) {
      const int64_t left = by_steps_ns(steps_at(position), kMedian, undisturbed, false);
      return left < 0 ? -1 : std::max<int64_t>(0, left - since_ns);
    }
    const LearntTime& from = from_[checkpoint_at(position)];
    if (!from.ready()) return -1;
    return std::max<int64_t>(0, from.quantile_ns(kMedian, undisturbed, false, since_ns) - since_ns);
  }

  int64_t service_ns() const { return from_[0].quantile_ns(kMedian, true, false); }

  // Of a whole request that ran alone; -1: of too few. What requests take beside training is no substitute.
  int64_t median_alone_ns() const { return from_[0].alone_ns(kMedian, false); }
  int64_t bound_alone_ns(uint32_t ppm) const { return from_[0].alone_ns(ppm, true); }

  // Whether requests are single forwards, so that checkpoints within a forward say how far they are.
  bool single_step() const { return steps_.count() == 0 || steps_.quantile(kMedian) <= 1; }

  // Other checkpoints are in use from now on.
  void forget_checkpoints() {
    for (uint32_t c = 1; c <= kCheckpoints; ++c) from_[c].clear();
  }

  // Learns from a finished request. Returns how wrong the prediction at its middle was: |predicted - actual| remaining
  // time, in millionths of the actual one, 10 times at most; -1 when there was none.
  int64_t learn(const Trace& trace, const FinishedRequest& r) {
    const int64_t error_ppm = error_at_middle(trace, r);
    const auto undisturbed = [&](int64_t from_ns) { return r.undisturbed_since_ns <= from_ns; };
    from_[0].add(r.end_ns - r.begin_ns, undisturbed(r.begin_ns));
    const Sighting* middle = nullptr;
    for (const Sighting& s : trace) {
      const uint32_t steps = steps_at(s.position);
      if (steps == 0) from_[checkpoint_at(s.position)].add(r.end_ns - s.at_ns, undisturbed(s.at_ns));
      if (steps > 0 && (!middle || 2 * steps <= r.steps) && steps < r.steps) middle = &s;
    }
    if (r.steps == 0) return error_ppm;
    steps_.add(r.steps);
    const Sighting from = middle ? *middle : Sighting{r.begin_ns, 0};
    step_.add((r.end_ns - from.at_ns) / (r.steps - steps_at(from.position)), undisturbed(from.at_ns));
    const Sighting& last = trace.last();
    if (steps_at(last.position) == r.steps) after_.add(r.end_ns - last.at_ns, undisturbed(last.at_ns));
    return error_ppm;
  }

 private:
  // Quantile(N | N >= n) - n steps, or an eighth more than there have been when that is more than ever.
  int64_t by_steps_ns(uint32_t n, uint32_t ppm, bool undisturbed, bool upper_edge) const {
    if (steps_.count() < LearntTime::kFewest || !step_.ready()) return -1;
    const int64_t total = steps_.quantile(ppm, int64_t{n} - 1, upper_edge);
    const int64_t left = total < 0 ? n / 8 + 1 : std::max<int64_t>(0, total - n);
    return std::max(left * step_.quantile_ns(ppm, undisturbed, upper_edge),
                    std::max<int64_t>(0, after_.quantile_ns(ppm, undisturbed, upper_edge)));
  }

  int64_t error_at_middle(const Trace& trace, const FinishedRequest& r) const {
    const int64_t half = (r.end_ns - r.begin_ns) / 2;
    if (half <= 0) return -1;
    Sighting at{r.begin_ns, 0};
    for (const Sighting& s : trace) {
      if (s.at_ns <= r.begin_ns + half) at = s;
    }
    const bool undisturbed = r.undisturbed_since_ns <= at.at_ns;
    const int64_t predicted = expected_ns(at.position, r.begin_ns + half - at.at_ns, undisturbed);
    if (predicted < 0) return -1;
    const double error = static_cast<double>(std::abs(predicted - half)) / static_cast<double>(half);
    return static_cast<int64_t>(1e6 * std::min(error, 10.0));
  }

  LearntTime from_[1 + kCheckpoints];  // from a checkpoint (0: the begin) to completion
  RecentValues steps_;                 // of a whole request
  LearntTime step_;                    // one step, as measured over the later half of a request
  LearntTime after_;                   // from the last step to completion
};

}  // namespace herald
