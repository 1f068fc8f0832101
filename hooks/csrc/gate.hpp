// The low-priority side: how an op waits while its device's gate is closed. Two mechanisms behind one call.
//
//   host    (CPU)   the op's thread waits on the gate word: a bounded spin, then futex naps
//   stream  (CUDA)  the op's stream waits on the GPU until the gate word is zero; the host goes on, up to a bound
//
// Whether ops come by here at all is the hook's to say, which listens only while it must (see Agent::arm, standby.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "coverage.hpp"
#include "cuda_driver.hpp"
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
class Gate {
 public:
  static constexpr uint32_t kMostCudaDevices = 16;
  static constexpr int64_t kSpinNs = 5'000;
  static constexpr int64_t kNapNs = 50'000'000;       // a lost wake-up costs at most this
  static constexpr int64_t kLongestWaitNs = 60'000'000'000;  // then the op runs: a gate never stops a job
  static constexpr int32_t kRunAheadUs = 20'000;     // host this far ahead of the GPU, in predicted time
  static constexpr uint32_t kProgressUs = 4'000;      // predicted time between two progress writes
  static constexpr uint32_t kQuickProgressUs = 500;   // likewise, where it matters when all has run
  static constexpr int64_t kThrottleNapNs = 100'000;
  static constexpr int64_t kRateChunkNs = 1'000'000;  // predicted time between two looks at the rate
  static constexpr int64_t kMillion = 1'000'000;

  Gate(TableView table, uint32_t row) : table_(table), row_(table.row(row)), coverage_(row_) {}

  JobRow& row() const { return row_; }
  const TableView& table() const { return table_; }
  bool is_cuda() const { return cuda_ != nullptr; }

  // CUDA: where device `index` finds its gate word and its progress words (kProgressBytes, host and device).
  void set_cuda(const CudaDriver* cuda, a32* progress, uint64_t progress_device) {
    cuda_ = cuda;
    progress_ = progress;
    progress_device_ = progress_device;
  }
  void set_device(uint32_t index, uint32_t slot, uint64_t word_device) {
    slots_[index] = slot;
    words_device_[index] = word_device;
  }
  void use_host_slot(uint32_t slot) { slots_[0] = slot; }

  // Without MPS contexts take turns anyway, so that nothing may run beside a request: light ops count as heavy.
  void set_all_heavy(bool all_heavy) { all_heavy_ = all_heavy; }
  bool all_heavy() const { return all_heavy_; }

  // Whether the hook must be on: someone could close the gate of one of its devices, or a graph is being captured,
  // which must have waits in it for those who come later.
  bool needed() const {
    if (captures_.load(std::memory_order_acquire) > 0 || is_limited()) return true;
    if (!cuda_) return table_.attached(slots_[0]).load(std::memory_order_seq_cst) != 0;
    for (uint32_t i = 0; i < kMostCudaDevices; ++i) {
      if (words_device_[i] && table_.attached(slots_[i]).load(std::memory_order_seq_cst) != 0) return true;
    }
    return false;
  }

  // Whether ops must come by now: on standby they need not while the gate is open, once what was issued before has run.
  bool must_listen() const {
    return needed() && (!on_standby_.load(std::memory_order_acquire) || is_closed() || is_limited() ||
                        captures_.load(std::memory_order_acquire) > 0 || (listens() && has_backlog()) ||
                        now_ns() + kWatchedNs > watched_until_ns_.load(std::memory_order_acquire));
  }

  bool listens() const { return listens_.load(std::memory_order_acquire); }

  // Told by the agent before the hook is turned on and after it is turned off.
  void set_listens(bool listens) {
    if (listens) {
      // The first op that comes by waits, and says what was still running.
      for (Lane& lane : lanes_) lane.since_wait_ns.store(INT64_MAX / 2, std::memory_order_relaxed);
      drain_asked_.store(++num_drains_, std::memory_order_relaxed);
    }
    listens_.store(listens, std::memory_order_seq_cst);
    if (!listens) rested_.store(true, std::memory_order_seq_cst);  // last: a step that ends now has rested
  }

  uint32_t num_drains() const { return num_drains_; }  // with the agent's lock held

  // The agent's look, for standby; returns by when to look again.
  int64_t look(int64_t now) {
    const int64_t opened = is_closed() ? -1 : table_.hold(slot()).opened_ns.load(std::memory_order_relaxed);
    const bool still = is_throttled_.load(std::memory_order_relaxed);
    const bool throttled = throttled_.exchange(still, std::memory_order_relaxed);
    pace_.look({now, listens(), opened, counted().total_ns(), throttled, has_backlog()});
    const bool pays = cuda_ && pace_.is_host_bound() && steps_.is_regular(now) && !drains_.refuse(now) &&
                      !is_limited() && uses_one_device();
    on_standby_.store(pays || forced_standby_.load(std::memory_order_relaxed), std::memory_order_release);
    return now + (pace_.is_known() || !listens() ? kLookNs : kQuickLookNs);
  }

  bool on_standby() const { return on_standby_.load(std::memory_order_acquire); }
  void force_standby(bool on) { forced_standby_.store(on, std::memory_order_relaxed); }

  // What a close changes, and the promise to whoever closes that it is being watched.
  const a32& word() const { return table_.gate(slot(), kClassHeavy); }
  void watch_until(int64_t until_ns) {
    i64& promised = table_.hold(slot()).standby_until_ns;
    if (promised.load(std::memory_order_relaxed) < until_ns) promised.store(until_ns, std::memory_order_seq_cst);
    watched_until_ns_.store(until_ns, std::memory_order_release);
  }

  // After a close that has just turned the hook on: waits until what was queued before has run, and keeps how long that
  // took from the close. `number`: of this drain. Where the first op comes by late and finds the stream empty, nobody
  // can say; the first stream to come by speaks for all.
  void measure_drain(uint32_t number) {
    if (!cuda_) return;
    const int64_t closed = table_.hold(slot()).closed_ns.load(std::memory_order_acquire);
    const auto is_drained = [&] { return progress_[kLanes].load(std::memory_order_acquire) == number; };
    const timespec nap{0, kDrainNapNs};
    int64_t now = now_ns();
    while (!is_drained() && is_closed() && is_active() && now - closed < kLongestDrainNs) {
      nanosleep(&nap, nullptr);
      now = now_ns();
    }
    if (!is_active() || drain_asked_.load(std::memory_order_acquire) == number) return;  // no op came by
    const int64_t asked = drain_asked_ns_.load(std::memory_order_relaxed);
    const bool was_empty = is_drained() && now - asked < kEmptyNs;
    if (was_empty && asked - closed > Drains::kMostNs) return;
    if (!is_drained() && now - closed <= Drains::kMostNs) return;  // the gate opened too soon to tell
    drains_.add(was_empty ? 0 : now - closed, now);
    if (!was_empty) tell_stretch(static_cast<uint64_t>(now - closed));
  }

  // An optimizer's step is over, on the thread that took it.
  void end_step() {
    const bool counted = !rested_.exchange(!listens(), std::memory_order_relaxed);
    const Work lacks = steps_.end(now_ns(), this->counted(), counted);
    row_.gated_ns.fetch_add(lacks.gated_ns, std::memory_order_relaxed);
    row_.light_ns.fetch_add(lacks.light_ns, std::memory_order_relaxed);
    row_.train_steps.fetch_add(1, std::memory_order_relaxed);
  }

  // A limit is the daemon's, and goes with it: a dead one limits nobody.
  bool is_limited() const {
    if (!row_.rate_ppm.load(std::memory_order_relaxed) && !row_.ahead_ns.load(std::memory_order_relaxed)) return false;
    const auto beat = static_cast<int64_t>(table_.header().daemon_heartbeat_ns.load(std::memory_order_relaxed));
    return now_ns() - beat < kWedgedNs;
  }

  void begin_capture() { captures_.fetch_add(1, std::memory_order_acq_rel); }
  void end_capture() {  // perhaps of a graph that was begun before this gate was there
    int open = captures_.load(std::memory_order_acquire);
    while (open > 0 && !captures_.compare_exchange_weak(open, open - 1)) {
    }
  }

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
  static constexpr uint32_t kLanes = 64;
  static constexpr int64_t kLookNs = 10'000'000;
  static constexpr int64_t kQuickLookNs = 2'500'000;  // gates may be open for moments only
  static constexpr int64_t kWatchedNs = 500'000'000;  // of its promise, the watch must have left
  static constexpr int64_t kDrainNapNs = 20'000;
  static constexpr int64_t kEmptyNs = 150'000;  // a stream that writes a word within this was empty
  static constexpr int64_t kLongestDrainNs = 5'000'000;

  void tell_stretch(uint64_t ns) {
    if (ns > row_.longest_op_ns.load(std::memory_order_relaxed)) {
      row_.longest_op_ns.store(ns, std::memory_order_relaxed);
    }
  }

  // `self_ns`: what the op counts for; `counted_ns`: what of it is in `passed_ns` already, 0 for an unknown op.
  void pass(uint32_t device, int64_t self_ns, int64_t counted_ns) {
    if (row_.rate_ppm.load(std::memory_order_relaxed)) keep_rate(self_ns);
    if (cuda_) {
      if (device < kMostCudaDevices && words_device_[device]) pass_stream(device, self_ns, counted_ns);
    } else {
      pass_host();
    }
  }

  // Bookkeeping of one (device, stream). Relaxed atomics: two threads on one stream are rare and may lose a count.
  struct Lane {
    std::atomic<uint64_t> stream{0};  // stream handle + 1; 0: free
    std::atomic<uint32_t> device{0};
    std::atomic<int64_t> since_wait_ns{INT64_MAX / 2};  // a stream's first op waits
    std::atomic<uint64_t> capture_id{0};  // the graph its last op went into; 0: none
    std::atomic<uint64_t> enqueued_ns{0};
    std::atomic<uint64_t> written_us{0};
  };

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
    if (const uint32_t drain = drain_asked_.load(std::memory_order_relaxed)) {
      drain_asked_ns_.store(now_ns(), std::memory_order_relaxed);
      drain_asked_.store(0, std::memory_order_release);
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

  // All that was let through.
  Work counted() const {
    return {row_.gated_ns.load(std::memory_order_relaxed), row_.light_ns.load(std::memory_order_relaxed)};
  }

  // The slot of the device that its ops run on; of several devices, of any.
  uint32_t slot() const { return cuda_ ? slots_[lanes_[0].device.load(std::memory_order_relaxed)] : slots_[0]; }
  bool is_closed() const { return word().load(std::memory_order_acquire) != 0; }
  bool is_active() const { return active_.load(std::memory_order_acquire); }

  bool has_backlog() const {
    for (size_t i = 0; progress_ && i < kLanes && lanes_[i].stream.load(std::memory_order_acquire) != 0; ++i) {
      const uint32_t done_us = progress_[i].load(std::memory_order_relaxed);
      if (done_us != static_cast<uint32_t>(lanes_[i].written_us.load(std::memory_order_relaxed))) return true;
    }
    return false;
  }

  // And nobody could close the gate of another one.
  bool uses_one_device() const {
    const uint32_t device = lanes_[0].device.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < kMostCudaDevices; ++i) {
      if (i != device && words_device_[i] && table_.attached(slots_[i]).load(std::memory_order_relaxed)) return false;
    }
    return lanes_[0].stream.load(std::memory_order_acquire) != 0 &&
           std::all_of(lanes_.begin(), lanes_.end(), [&](const Lane& lane) {
             return lane.stream.load(std::memory_order_acquire) == 0 ||
                    lane.device.load(std::memory_order_relaxed) == device;
           });
  }

  // A captured progress write would repeat its constant at every replay: there is none in graphs.
  void write_progress(Lane& lane, uint64_t index, CudaStream stream) {
    const uint64_t ahead_us = lane.enqueued_ns.load(std::memory_order_relaxed) / 1000;
    const int32_t most_us = most_ahead_us();
    // Often enough to see a shorter bound, too.
    const uint32_t usual_us = pace_.is_host_bound() ? kQuickProgressUs : kProgressUs;
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
    is_throttled_.store(true, std::memory_order_relaxed);
    throttled_.store(true, std::memory_order_relaxed);
    while (too_far() && active_.load(std::memory_order_acquire) && now_ns() - begin < kLongestWaitNs) {
      nanosleep(&nap, nullptr);
    }
    is_throttled_.store(false, std::memory_order_relaxed);
    if (!active_.load(std::memory_order_acquire)) return;  // the row may be another job's by now
    row_.throttle_ns.fetch_add(static_cast<uint64_t>(now_ns() - begin), std::memory_order_relaxed);
  }

  Lane* lane_of(uint32_t device, CudaStream stream) {
    const uint64_t wanted = reinterpret_cast<uint64_t>(stream) + 1;
    for (Lane& lane : lanes_) {
      uint64_t found = lane.stream.load(std::memory_order_acquire);
      if (found == 0 && lane.stream.compare_exchange_strong(found, wanted)) {
        lane.device.store(device, std::memory_order_relaxed);
        found = wanted;
      }
      if (found == wanted && lane.device.load(std::memory_order_relaxed) == device) return &lane;
    }
    return &lanes_[kLanes - 1];
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  TableView table_;
  JobRow& row_;
  CoverageSampler coverage_;
  const CudaDriver* cuda_ = nullptr;
  a32* progress_ = nullptr;
  uint64_t progress_device_ = 0;
  std::array<uint32_t, kMostCudaDevices> slots_{};
  std::array<uint64_t, kMostCudaDevices> words_device_{};
  std::array<Lane, kLanes> lanes_;
  std::atomic<bool> active_{true};
  std::atomic<int> captures_{0};
  std::atomic<int64_t> spent_ns_{0};      // predicted time issued since the last look at the rate
  std::atomic<int64_t> rate_free_ns_{0};  // when the next may be issued
  bool all_heavy_ = false;
  std::atomic<bool> listens_{true};
  std::atomic<bool> rested_{true};  // during the training step that is under way: it began before this gate was there
  std::atomic<bool> on_standby_{false};
  std::atomic<bool> forced_standby_{false};
  std::atomic<uint32_t> drain_asked_{0};  // number of the drain whose end the next wait is to mark; 0: none
  std::atomic<int64_t> drain_asked_ns_{0};  // when it was marked
  uint32_t num_drains_ = 0;                 // changed with the agent's lock held
  std::atomic<int64_t> watched_until_ns_{0};
  std::atomic<bool> is_throttled_{false};  // the host is waiting for the GPU
  std::atomic<bool> throttled_{false};     // it has, since the agent's last look
  Pace pace_;
  Drains drains_;
  StepWork steps_;

 public:
  static constexpr uint64_t kProgressBytes = (kLanes + 1) * sizeof(uint32_t);  // and one for drains
};

}  // namespace herald
