// The low-priority side: how an op waits while its device's gate is closed. Two mechanisms behind one call.
//
//   host    (CPU)   the op's thread waits on the gate word: a bounded spin, then futex naps
//   stream  (CUDA)  the op's stream waits on the GPU until the gate word is zero; the host goes on, up to a bound
//
// Whether ops come by here at all is the hook's to say, which listens only while it must (see Standby::arm).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "coverage.hpp"
#include "cuda_driver.hpp"
#include "gate_state.hpp"
#include "standby.hpp"
#include "table.hpp"

namespace herald {

// Releases the GIL for the length of a wait, if this thread holds it. Found at run time: no Python headers.
class GilPause {
 public:
  GilPause() {
    static const auto check = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    static const auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
    static const auto initialised = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
    if (check && save && initialised && initialised() && check()) state_ = save();
  }
  ~GilPause() {
    static const auto restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
    if (state_) restore(state_);
  }
  GilPause(const GilPause&) = delete;
  GilPause& operator=(const GilPause&) = delete;

 private:
  void* state_ = nullptr;
};

// One low-priority job's gate. Never freed: a thread may be waiting in it while the job detaches.
class Gate : public GateState {
 public:
  static constexpr int64_t kSpinNs = 5'000;
  static constexpr int64_t kNapNs = 50'000'000;       // a lost wake-up costs at most this
  static constexpr int64_t kLongestWaitNs = 60'000'000'000;  // then the op runs: a gate never stops a job
  static constexpr int32_t kRunAheadUs = 20'000;     // host this far ahead of the GPU, in predicted time
  static constexpr uint32_t kProgressUs = 4'000;      // predicted time between two progress writes
  static constexpr uint32_t kQuickProgressUs = 500;   // likewise, where it matters when all has run
  static constexpr int64_t kThrottleNapNs = 100'000;
  static constexpr int64_t kRateChunkNs = 1'000'000;  // predicted time between two looks at the rate
  static constexpr int64_t kMillion = 1'000'000;

  Gate(TableView table, uint32_t row) : GateState(table, row), coverage_(row_), standby_(*this) {}

  Standby& standby() { return standby_; }

  void stop() {
    active_.store(false, std::memory_order_release);
    futex(&table_.gate(slots_[0], kClassHeavy), FUTEX_WAKE, INT_MAX, nullptr);
  }

  // Before an op of known `self_ns` device time on `device`. `gated_inside`: it has waits of its own (a graph that was
  // captured with them), so that it does not run on after a close.
  void pass_known(uint32_t device, int64_t self_ns, bool gated_inside) {
    row_.gated_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
    // What a closing gate cannot stop: on a stream up to a quantum of ops, or the longest single one.
    const int64_t quantum = cuda_ ? table_.header().quantum_ns.load(std::memory_order_relaxed) : 0;
    tell_stretch(static_cast<uint64_t>(std::max(gated_inside ? 0 : self_ns, quantum)));
    pass(device, self_ns, self_ns);
  }

  // An op that may run beside requests.
  void pass_light(int64_t self_ns) {
    row_.light_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
  }

  // An op of unknown length counts as a whole quantum: a wait comes before it and before whatever follows.
  void pass_unknown(uint32_t device) {
    row_.ops_unknown.fetch_add(1, std::memory_order_relaxed);
    pass(device, table_.header().quantum_ns.load(std::memory_order_relaxed), 0);
  }

 private:
  // `self_ns`: what the op counts for; `counted_ns`: what of it is in `passed_ns` already, 0 for an unknown op.
  void pass(uint32_t device, int64_t self_ns, int64_t counted_ns) {
    if (row_.rate_ppm.load(std::memory_order_relaxed)) keep_rate(self_ns);
    if (cuda_) {
      if (device < kMostCudaDevices && words_device_[device]) pass_stream(device, self_ns, counted_ns);
    } else {
      pass_host();
    }
  }

  // A limit on the predicted device time that is issued per time: the host thread sleeps off what is too much. What was
  // not used is not saved up.
  void keep_rate(int64_t self_ns) {
    const int64_t spent = spent_ns_.fetch_add(self_ns, std::memory_order_relaxed) + self_ns;
    if (spent < kRateChunkNs) return;
    spent_ns_.fetch_sub(spent, std::memory_order_relaxed);
    const int64_t rate = is_limited() ? row_.rate_ppm.load(std::memory_order_relaxed) : 0;
    const int64_t begin = now_ns();
    const int64_t free_at = std::max(rate_free_ns_.load(std::memory_order_relaxed), begin);
    rate_free_ns_.store(rate > 0 ? free_at + spent * kMillion / rate : begin, std::memory_order_relaxed);
    if (free_at <= begin) return;
    GilPause gil;
    for (int64_t now = begin; now < free_at && is_limited() && active_.load(std::memory_order_acquire) &&
                              now - begin < kLongestWaitNs;
         now = now_ns()) {
      const timespec nap{0, std::min(free_at - now, kNapNs)};
      nanosleep(&nap, nullptr);
    }
    if (!active_.load(std::memory_order_acquire)) return;  // the row may be another job's by now
    row_.throttle_ns.fetch_add(static_cast<uint64_t>(now_ns() - begin), std::memory_order_relaxed);
  }

  void pass_host() {
    a32& word = table_.gate(slots_[0], kClassHeavy);
    row_.gate_points.fetch_add(1, std::memory_order_relaxed);
    if (word.load(std::memory_order_acquire) == 0) return;
    const int64_t begin = now_ns();
    while (word.load(std::memory_order_acquire) != 0 && now_ns() - begin < kSpinNs) pause();
    if (word.load(std::memory_order_acquire) != 0) {
      GilPause gil;
      sleep_until_open(word, begin);
    }
    if (!active_.load(std::memory_order_acquire)) return;  // the row may be another job's by now
    row_.gate_waits.fetch_add(1, std::memory_order_relaxed);
    row_.gate_wait_ns.fetch_add(static_cast<uint64_t>(now_ns() - begin), std::memory_order_relaxed);
  }

  void sleep_until_open(a32& word, int64_t begin) {
    const timespec nap{0, kNapNs};
    while (const uint32_t closed = word.load(std::memory_order_acquire)) {
      if (!active_.load(std::memory_order_acquire) || now_ns() - begin > kLongestWaitNs) return;
      futex(&word, FUTEX_WAIT, closed, &nap);
    }
  }

  void pass_stream(uint32_t device, int64_t self_ns, int64_t counted_ns) {
    const CudaDriver::InContext context(*cuda_, static_cast<int>(device));
    const CudaStream stream = cuda_->current_stream(static_cast<int>(device));
    Lane* lane = lane_of(device, stream);
    const int64_t quantum = table_.header().quantum_ns.load(std::memory_order_relaxed);
    // Every graph begins with a wait, however short it is: what ran before its capture does not run before its replay.
    const uint64_t capture = cuda_->capture_id(stream);
    const bool new_graph = lane->capture_id.exchange(capture, std::memory_order_relaxed) != capture;
    const int64_t since = new_graph ? quantum : lane->since_wait_ns.load(std::memory_order_relaxed);
    const bool due = since > 0 && since + self_ns > quantum;
    lane->since_wait_ns.store(due ? self_ns : since + self_ns, std::memory_order_relaxed);
    if (due && capture) {
      enqueue_wait(device, stream);
    } else if (due) {
      end_quantum(*lane, device, stream, counted_ns);
    }
    // What goes into a graph does not run now.
    if (!capture) lane->enqueued_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
  }

  // Between two quanta of a stream that runs: the wait, and what there is to measure.
  void end_quantum(Lane& lane, uint32_t device, CudaStream stream, int64_t counted_ns) {
    const auto index = static_cast<uint64_t>(&lane - lanes_.data());
    // This op comes after the wait.
    const uint64_t passed_ns = counted().total_ns() - static_cast<uint64_t>(counted_ns);
    if (const uint32_t drain = standby_.take_drain()) {
      cuda_->write_value(stream, progress_device_ + kLanes * sizeof(uint32_t), drain, 0);
    }
    coverage_.before_wait(*cuda_, stream, passed_ns, progress_[index]);
    // Nobody is there who could close the gate: what is enqueued now has drained before a new service is protected.
    if (table_.attached(slots_[device]).load(std::memory_order_relaxed)) enqueue_wait(device, stream);
    const auto written = static_cast<uint32_t>(lane.written_us.load(std::memory_order_relaxed));
    if (counted_ns > 0) coverage_.after_wait(*cuda_, stream, passed_ns, progress_[index], written, opened_ns(device));
    write_progress(lane, index, stream);
  }

  // Fails open: an op for which no wait can be enqueued runs.
  void enqueue_wait(uint32_t device, CudaStream stream) {
    if (cuda_->wait_value(stream, words_device_[device], 0, kWaitValueEq) != 0) return;
    row_.gate_points.fetch_add(1, std::memory_order_relaxed);
  }

  int64_t opened_ns(uint32_t device) const {
    const bool closed = table_.gate(slots_[device], kClassHeavy).load(std::memory_order_acquire) != 0;
    return closed ? CoverageSampler::kClosed : table_.hold(slots_[device]).opened_ns.load(std::memory_order_relaxed);
  }

  // A captured progress write would repeat its constant at every replay: there is none in graphs.
  void write_progress(Lane& lane, uint64_t index, CudaStream stream) {
    const uint64_t ahead_us = lane.enqueued_ns.load(std::memory_order_relaxed) / 1000;
    const int32_t most_us = most_ahead_us();
    // Often enough to see a shorter bound, too.
    const uint32_t usual_us = standby_.is_host_bound() ? kQuickProgressUs : kProgressUs;
    const auto every_us = std::min(usual_us, static_cast<uint32_t>(most_us) / 2);
    if (ahead_us - lane.written_us.load(std::memory_order_relaxed) < every_us) return;
    const uint64_t word = progress_device_ + index * sizeof(uint32_t);
    if (cuda_->write_value(stream, word, static_cast<uint32_t>(ahead_us), 0) != 0) return;
    lane.written_us.store(ahead_us, std::memory_order_relaxed);
    bound_run_ahead(progress_[index], static_cast<uint32_t>(ahead_us), most_us);
  }

  int32_t most_ahead_us() const {
    const int64_t planned_us = is_limited() ? row_.ahead_ns.load(std::memory_order_relaxed) / 1000 : 0;
    return planned_us > 0 ? static_cast<int32_t>(std::min<int64_t>(planned_us, kRunAheadUs)) : kRunAheadUs;
  }

  // About 1000 commands fit behind a closed wait; then a launch would block inside the driver.
  void bound_run_ahead(const a32& done_us, uint32_t enqueued_us, int32_t most_us) {
    // Signed: with two threads on a stream, the other's later write may already have passed ours.
    const auto too_far = [&] {
      return static_cast<int32_t>(enqueued_us - done_us.load(std::memory_order_acquire)) > most_us;
    };
    if (!too_far()) return;
    GilPause gil;
    const int64_t begin = now_ns();
    const timespec nap{0, kThrottleNapNs};
    standby_.begin_throttle();
    while (too_far() && active_.load(std::memory_order_acquire) && now_ns() - begin < kLongestWaitNs) {
      nanosleep(&nap, nullptr);
    }
    standby_.end_throttle();
    if (!active_.load(std::memory_order_acquire)) return;  // the row may be another job's by now
    row_.throttle_ns.fetch_add(static_cast<uint64_t>(now_ns() - begin), std::memory_order_relaxed);
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  CoverageSampler coverage_;
  Standby standby_;
  std::atomic<int64_t> spent_ns_{0};      // predicted time issued since the last look at the rate
  std::atomic<int64_t> rate_free_ns_{0};  // when the next may be issued
};

}  // namespace herald
