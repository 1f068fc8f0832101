// What is learnt of a trainer to tell whether standby would pay and what it costs others: who sets its pace, how long
// its work runs on after a close, and the work of its steps. Nothing here decides; see standby.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace herald {

// Predicted device time, as counted.
struct Work {
  uint64_t gated_ns = 0;
  uint64_t light_ns = 0;

  uint64_t total_ns() const { return gated_ns + light_ns; }
};

// Whether the host sets the pace. With an open gate, predicted work then takes longer than predicted, and what is
// enqueued has mostly run by the next look. Looked at by one thread, the agent's.
class Pace {
 public:
  struct Look {
    int64_t now_ns;
    bool counted;       // the hook is on
    int64_t opened_ns;  // when the gate was last opened; -1: it is closed
    uint64_t work_ns;   // counted so far
    bool throttled;     // the host has waited for the GPU since the last look
    bool backlog;       // not all that was enqueued has run
  };

  void look(const Look& at) {
    if (at.counted && last_.counted && at.opened_ns >= 0 && at.opened_ns == last_.opened_ns) {
      const int64_t time = at.now_ns - last_.now_ns;
      time_ns_ += time;
      work_ns_ += at.throttled ? time : static_cast<int64_t>(at.work_ns - last_.work_ns);
      ++looks_;
      backlogs_ += at.backlog;
    }
    last_ = at;
    if (time_ns_ >= kLongEnoughNs) judge();
  }

  bool is_known() const { return known_; }
  bool is_host_bound() const { return host_bound_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kLongEnoughNs = 200'000'000;
  static constexpr double kHostBound = 0.8;
  static constexpr double kStillHostBound = 0.9;

  void judge() {
    const double share = static_cast<double>(work_ns_) / static_cast<double>(time_ns_);
    // A host-bound trainer writes its progress more often, so that more of its backlog is seen.
    const bool bound = is_host_bound() ? share < kStillHostBound : share < kHostBound && 3 * backlogs_ < looks_;
    host_bound_.store(bound, std::memory_order_relaxed);
    known_ = true;
    time_ns_ = work_ns_ = 0;
    looks_ = backlogs_ = 0;
  }

  Look last_{0, false, -1, 0, false, false};
  int64_t time_ns_ = 0;
  int64_t work_ns_ = 0;
  int looks_ = 0;
  int backlogs_ = 0;
  bool known_ = false;
  std::atomic<bool> host_bound_{false};
};

// How long trainers' work runs on after closes: too long too often, and there is no standby for a while.
class Drains {
 public:
  static constexpr int64_t kMostNs = 1'000'000;

  void add(int64_t ns, int64_t now) {
    score_ = ns > kMostNs ? score_ + kLate : std::max(0, score_ - 1);
    if (score_ < kTooLate) return;
    refused_until_ns_.store(now + refusal_ns_, std::memory_order_relaxed);
    refusal_ns_ = std::min(2 * refusal_ns_, kLongestRefusalNs);
    score_ = 0;
  }

  bool refuse(int64_t now) const { return now < refused_until_ns_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kLate = 8;  // one in nine may be late
  static constexpr int kTooLate = 24;
  static constexpr int64_t kLongestRefusalNs = 3'600'000'000'000;

  int score_ = 0;
  int64_t refusal_ns_ = 30'000'000'000;
  std::atomic<int64_t> refused_until_ns_{0};
};

// The work of a training step, for steps that nobody counted. For the thread that steps; others ask `is_regular`.
class StepWork {
 public:
  // A step is over; `total`: all that was counted until now. Returns what the step's count lacks of a usual step;
  // nothing of one that was `counted` all through, from which the usual one is learnt.
  Work end(int64_t now, const Work& total, bool counted) {
    const Work seen{total.gated_ns - total_.gated_ns, total.light_ns - total_.light_ns};
    const int64_t took_ns = now - ended_ns_.exchange(now, std::memory_order_relaxed);
    total_ = total;
    if (counted) {
      const auto weight = static_cast<int64_t>(std::min(known_.load(std::memory_order_relaxed) + 1, kFewest));
      learn(usual_.gated_ns, seen.gated_ns, weight);
      learn(usual_.light_ns, seen.light_ns, weight);
      const int64_t usual_ns = took_ns_.load(std::memory_order_relaxed);
      took_ns_.store(usual_ns + (took_ns - usual_ns) / weight, std::memory_order_relaxed);
      work_ns_.store(static_cast<int64_t>(usual_.total_ns()), std::memory_order_relaxed);
      known_.store(known_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      return {};
    }
    const Work lacks{usual_.gated_ns - std::min(usual_.gated_ns, seen.gated_ns),
                     usual_.light_ns - std::min(usual_.light_ns, seen.light_ns)};
    total_.gated_ns += lacks.gated_ns;
    total_.light_ns += lacks.light_ns;
    return lacks;
  }

  // Whether steps come that are short: what is credited by the step is then never far behind, and what a host that
  // waits for its step has queued is little.
  bool is_regular(int64_t now) const {
    return known_.load(std::memory_order_relaxed) >= kFewest &&
           took_ns_.load(std::memory_order_relaxed) <= kLongestStepNs &&
           work_ns_.load(std::memory_order_relaxed) <= kMostWorkNs &&
           now - ended_ns_.load(std::memory_order_relaxed) <= kSilentNs;
  }

 private:
  static constexpr uint32_t kFewest = 8;
  static constexpr int64_t kLongestStepNs = 25'000'000;  // half of the time between two looks of the daemon
  static constexpr int64_t kMostWorkNs = 4'000'000;
  static constexpr int64_t kSilentNs = 100'000'000;

  static void learn(uint64_t& usual, uint64_t seen, int64_t weight) {
    const auto before = static_cast<int64_t>(usual);
    usual = static_cast<uint64_t>(before + (static_cast<int64_t>(seen) - before) / weight);
  }

  Work total_;
  Work usual_;
  std::atomic<uint32_t> known_{0};  // steps that it was learnt from
  std::atomic<int64_t> took_ns_{0};
  std::atomic<int64_t> work_ns_{0};
  std::atomic<int64_t> ended_ns_{0};
};

}  // namespace herald
