// When requests must have the device to themselves: the arithmetic of demand and of turns, and the work of other
// services. No clock, no state of its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "table.hpp"

namespace herald {

// The demand of one queue, walked in its order: a request must also make room for those that go before it.
class Demand {
 public:
  Demand(int64_t margin_ns, uint32_t inflation_ppm) : margin_ns_(margin_ns), inflation_ppm_(inflation_ppm) {}

  // How long before its deadline the next request closes the gate; `others_ns` is work that goes before this one only.
  int64_t lead_ns(int64_t remaining_ns, int64_t others_ns) const {
    return lead_from_progress(margin_ns_, ahead_ns_ + others_ns + remaining_ns, inflation_ppm_);
  }

  // It goes before all that follow.
  void pass(int64_t remaining_ns) { ahead_ns_ += remaining_ns; }

  // The remaining time that a lead stands for, rounded up.
  int64_t remaining_of_lead_ns(int64_t lead_ns) const {
    const double left = static_cast<double>(std::max<int64_t>(0, lead_ns - margin_ns_));
    return static_cast<int64_t>(left / inflation_ppm_ * 1e6) + 1;
  }

 private:
  const int64_t margin_ns_;
  const uint32_t inflation_ppm_;
  int64_t ahead_ns_ = 0;
};

// The earliest time that any request of a queue closes the gate; kNoDeadline when none has a deadline. `ahead_ns` goes
// before all of them.
inline int64_t close_at_ns(uint32_t num, const int64_t* deadlines_ns, const int64_t* remaining_ns, int64_t margin_ns,
                           uint32_t inflation_ppm, int64_t ahead_ns) {
  Demand demand(margin_ns, inflation_ppm);
  int64_t earliest = kNoDeadline;
  for (uint32_t i = 0; i < num; ++i) {
    if (deadlines_ns[i] != kNoDeadline) {
      earliest = std::min(earliest, deadlines_ns[i] - demand.lead_ns(remaining_ns[i], ahead_ns));
    }
    demand.pass(remaining_ns[i]);
  }
  return earliest;
}

// Turns of a closed and an open gate, from a closed one at the begin of a busy period.
struct Turn {
  bool closed;
  int64_t ends_ns;

  static Turn at(int64_t now, int64_t busy_since_ns, int64_t slice_ns) {
    const int64_t number = std::max<int64_t>(0, now - busy_since_ns) / slice_ns;
    return {number % 2 == 0, busy_since_ns + (number + 1) * slice_ns};
  }
};

// What other services of a device have open, as their rows say: between services the earliest deadline goes first.
class OtherServices {
 public:
  OtherServices(const TableView& table, const JobRow& own) {
    // One load where there is no other: most devices serve one.
    if ((table.attached(own.device).load(std::memory_order_relaxed) & ~(1u << own.bit)) == 0) return;
    present_ = true;
    for (uint32_t i = 0; i < kMaxJobs && count_ < kMost; ++i) {
      const JobRow& job = table.row(i);
      if (&job == &own || job.state.load(std::memory_order_acquire) != kLive) continue;
      if (job.priority != kHigh || job.device != own.device) continue;
      const int64_t deadline = job.oldest_deadline_ns.load(std::memory_order_relaxed);
      if (deadline == kNoDeadline) continue;
      const int64_t remaining = job.remaining_ns.load(std::memory_order_relaxed);
      const int64_t left = remaining >= 0 ? remaining : job.alone_ns.load(std::memory_order_relaxed);
      if (left > 0) open_[count_++] = {deadline, left};
    }
  }

  bool present() const { return present_; }

  int64_t due_before_ns(int64_t deadline) const {
    int64_t sum = 0;
    for (uint32_t i = 0; i < count_; ++i) sum += open_[i].deadline_ns < deadline ? open_[i].left_ns : 0;
    return sum;
  }

 private:
  static constexpr uint32_t kMost = 32;  // services of a device
  struct Open {
    int64_t deadline_ns;
    int64_t left_ns;
  };
  bool present_ = false;
  uint32_t count_ = 0;
  Open open_[kMost];
};

}  // namespace herald
