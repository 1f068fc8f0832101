// Standby: the hook of a trainer whose pace the host sets, not the GPU, rests while its gate is open and is armed as it
// closes.
//
// To such a trainer every callback is a loss, where a GPU-bound one hides it. And it has next to nothing queued: the op
// that comes after a close waits, and what runs until then is short. So the hook rests only once all that was issued
// has run, and how long the rest runs on is measured at every close. What was issued at rest is known by the step:
// loops repeat themselves.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>

#include "gate_state.hpp"
#include "pace.hpp"
#include "table.hpp"

namespace herald {

// When the hook of a gate listens and when it rests. The agent asks and arms, with its lock held; ops and the thread
// that steps tell what happens. Lives as long as its gate.
class Standby {
 public:
  explicit Standby(GateState& gate) : gate_(gate) {}

  // Before a wait: the number of the drain whose end is to be marked here; 0: none.
  uint32_t take_drain() {
    const uint32_t drain = drain_asked_.load(std::memory_order_relaxed);
    if (!drain) return 0;
    drain_asked_ns_.store(now_ns(), std::memory_order_relaxed);
    drain_asked_.store(0, std::memory_order_release);
    return drain;
  }

  bool is_host_bound() const { return pace_.is_host_bound(); }

  // Around a wait of the host for the GPU.
  void begin_throttle() {
    is_throttled_.store(true, std::memory_order_relaxed);
    throttled_.store(true, std::memory_order_relaxed);
  }
  void end_throttle() { is_throttled_.store(false, std::memory_order_relaxed); }

  // An optimizer's step is over, on the thread that took it.
  void end_step() {
    const bool counted = !rested_.exchange(!listens(), std::memory_order_relaxed);
    const Work lacks = steps_.end(now_ns(), gate_.counted(), counted);
    JobRow& row = gate_.row();
    row.gated_ns.fetch_add(lacks.gated_ns, std::memory_order_relaxed);
    row.light_ns.fetch_add(lacks.light_ns, std::memory_order_relaxed);
    row.train_steps.fetch_add(1, std::memory_order_relaxed);
  }

  void force(bool on) { forced_.store(on, std::memory_order_relaxed); }

  bool is_on() const { return on_.load(std::memory_order_acquire); }
  bool listens() const { return listens_.load(std::memory_order_acquire); }
  uint32_t num_drains() const { return num_drains_; }  // with the agent's lock held

  // The agent's look; returns by when to look again.
  int64_t look(int64_t now) {
    const int64_t opened = gate_.is_closed() ? -1 : gate_.hold().opened_ns.load(std::memory_order_relaxed);
    const bool still = is_throttled_.load(std::memory_order_relaxed);
    const bool throttled = throttled_.exchange(still, std::memory_order_relaxed);
    pace_.look({now, listens(), opened, gate_.counted().total_ns(), throttled, gate_.has_backlog()});
    const bool pays = gate_.is_cuda() && pace_.is_host_bound() && steps_.is_regular(now) && !drains_.refuse(now) &&
                      !gate_.is_limited() && gate_.uses_one_device();
    const bool on = pays || forced_.load(std::memory_order_relaxed);
    if (on_.exchange(on, std::memory_order_acq_rel) && !on) gate_.forget_drains();
    return now + (pace_.is_known() || !listens() ? kLookNs : kQuickLookNs);
  }

  // A trainer that is alone pays nothing: its hook rests until a service attaches, which waits to see it armed. Nor
  // does one on standby, until its gate closes. `arm_callbacks`: of process.hpp.
  void arm(bool (*arm_callbacks)(bool)) {
    a32& armed = gate_.row().armed;
    if (!must_listen() && listens() && arm_callbacks(false)) set_listens(false);
    if (!listens()) armed.store(is_needed(), std::memory_order_seq_cst);
    // Asked again: someone may have come between the question and the answer, and may have seen it armed.
    if (!must_listen() || listens()) return;
    set_listens(true);
    arm_callbacks(true);
    armed.store(1, std::memory_order_seq_cst);
  }

  // The promise to whoever closes that the gate is being watched.
  void watch_until(int64_t until_ns) {
    i64& promised = gate_.hold().standby_until_ns;
    if (promised.load(std::memory_order_relaxed) < until_ns) promised.store(until_ns, std::memory_order_seq_cst);
    watched_until_ns_.store(until_ns, std::memory_order_release);
  }

  // After a close that has just turned the hook on: waits until what was queued before has run, and keeps how long that
  // took from the close. `number`: of this drain. Where the first op comes by late and finds the stream empty, nobody
  // can say; the first stream to come by speaks for all.
  void measure_drain(uint32_t number) {
    if (!gate_.is_cuda()) return;
    const int64_t closed = gate_.hold().closed_ns.load(std::memory_order_acquire);
    const auto is_drained = [&] { return gate_.drained() == number; };
    const timespec nap{0, kDrainNapNs};
    int64_t now = now_ns();
    while (!is_drained() && gate_.is_closed() && gate_.is_active() && now - closed < kLongestDrainNs) {
      nanosleep(&nap, nullptr);
      now = now_ns();
    }
    if (!gate_.is_active() || drain_asked_.load(std::memory_order_acquire) == number) return;  // no op came by
    const int64_t asked = drain_asked_ns_.load(std::memory_order_relaxed);
    const bool was_empty = is_drained() && now - asked < kEmptyNs;
    if (was_empty && asked - closed > Drains::kMostNs) return;
    if (!is_drained() && now - closed <= Drains::kMostNs) return;  // the gate opened too soon to tell
    const int64_t drained = was_empty ? 0 : now - closed;
    drains_.add(drained, now);
    gate_.tell_drain(static_cast<uint64_t>(drained));
  }

 private:
  static constexpr int64_t kLookNs = 10'000'000;
  static constexpr int64_t kQuickLookNs = 2'500'000;  // gates may be open for moments only
  static constexpr int64_t kWatchedNs = 500'000'000;  // of its promise, the watch must have left
  static constexpr int64_t kDrainNapNs = 20'000;
  static constexpr int64_t kEmptyNs = 150'000;  // a stream that writes a word within this was empty
  static constexpr int64_t kLongestDrainNs = 5'000'000;

  // Whether the hook must be on: someone could close the gate of one of its devices, or a graph is being captured,
  // which must have waits in it for those who come later.
  bool is_needed() const { return gate_.is_capturing() || gate_.is_limited() || gate_.is_attached(); }

  // Whether ops must come by now: on standby they need not while the gate is open, once what was issued before has run.
  bool must_listen() const {
    return is_needed() && (!is_on() || gate_.is_closed() || gate_.is_limited() || gate_.is_capturing() ||
                           (listens() && gate_.has_backlog()) ||
                           now_ns() + kWatchedNs > watched_until_ns_.load(std::memory_order_acquire));
  }

  // Before the hook is turned on and after it is turned off.
  void set_listens(bool listens) {
    if (listens) {
      // The first op that comes by waits, and says what was still running.
      gate_.end_quanta();
      drain_asked_.store(++num_drains_, std::memory_order_relaxed);
    }
    listens_.store(listens, std::memory_order_seq_cst);
    if (!listens) rested_.store(true, std::memory_order_seq_cst);  // last: a step that ends now has rested
  }

  GateState& gate_;
  std::atomic<bool> listens_{true};
  std::atomic<bool> rested_{true};  // during the training step that is under way: it began before this gate was there
  std::atomic<bool> on_{false};
  std::atomic<bool> forced_{false};
  std::atomic<uint32_t> drain_asked_{0};  // number of the drain whose end the next wait is to mark; 0: none
  std::atomic<int64_t> drain_asked_ns_{0};  // when it was marked
  uint32_t num_drains_ = 0;                 // changed with the agent's lock held
  std::atomic<int64_t> watched_until_ns_{0};
  std::atomic<bool> is_throttled_{false};  // the host is waiting for the GPU
  std::atomic<bool> throttled_{false};     // it has, since the agent's last look
  Pace pace_;
  Drains drains_;
  StepWork steps_;
};

}  // namespace herald
