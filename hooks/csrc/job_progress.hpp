// The progress of the open requests of one job: what their marks say, what was learnt from finished ones. The steps of
// an engine are requests here, too, of kinds of their own; they have no marks.
//
// On CUDA a mark is a stream's write into the request's progress word, [tag of the request | position], which only
// look() reads; on CPU the serving thread sights its own marks. The caller's lock covers all of it.
#pragma once

#include <cstdint>
#include <vector>

#include "progress.hpp"
#include "table.hpp"

namespace herald {

enum WorkKind : uint32_t { kRequest = 0, kPrefill = 1, kDecode = 2 };
constexpr uint32_t kWorkKinds = 3;

class JobProgress {
 public:
  static constexpr uint32_t kTagMask = 0xfff;  // tells the users of a slot apart, also for marks that land late

  // `words`: one zeroed word per slot; null on CPU.
  JobProgress(JobRow& row, const a32* words, uint32_t num_slots)
      : row_(row), words_(words), states_(num_slots), traces_(num_slots) {}

  // A new request in the slot; returns its tag.
  uint32_t start(uint32_t slot, WorkKind kind, int64_t now) {
    State& s = states_[slot];
    s = {now, -1, 0, 0, 0, 0, epoch_, (s.tag + 1) & kTagMask, kind};
    traces_[slot].start();
    return s.tag;
  }

  uint32_t tag(uint32_t slot) const { return states_[slot].tag; }
  WorkKind kind(uint32_t slot) const { return states_[slot].kind; }
  uint32_t steps(uint32_t slot) const { return states_[slot].steps; }
  int64_t seen_ns(uint32_t slot) const { return states_[slot].seen_ns; }  // when it was where it is; at first: begun

  // The next position of the request: one step more (0) or a checkpoint. 0: that mark says nothing of this request.
  uint32_t advance(uint32_t slot, uint32_t checkpoint) {
    State& s = states_[slot];
    if (checkpoint == 0) {
      s.steps = std::min(s.steps + 1, kMostSteps);
    } else if (checkpoint > kCheckpoints || s.steps > 0 || !single_step_) {
      return 0;
    }
    const uint32_t position = position_of(s.steps, checkpoint);
    if (position <= s.enqueued) return 0;  // a module that ran again
    return s.enqueued = position;
  }

  uint32_t word(uint32_t slot, uint32_t position) const { return states_[slot].tag << kPositionBits | position; }

  void sight(uint32_t slot, uint32_t position, int64_t now, bool exact) {
    State& s = states_[slot];
    s.position = position;
    s.seen_ns = now;
    s.bound_ppm = 0;
    if (exact) traces_[slot].add(now, position);
  }

  void set_marked() { marked_ = true; }

  // Reads what the streams have written.
  void look(const std::vector<uint32_t>& open, int64_t now) {
    if (!marked_) return;
    // What happened since a look long ago is known to have happened, but not when.
    const bool exact = now - looked_ns_ <= 2 * poll_ns() + kLongestPollNs / 5;
    looked_ns_ = now;
    for (const uint32_t slot : open) {
      const uint32_t word = words_[slot].load(std::memory_order_acquire);
      const uint32_t position = word & ((1u << kPositionBits) - 1);
      if (word >> kPositionBits == states_[slot].tag && position > states_[slot].position) {
        sight(slot, position, now, exact);
      }
    }
  }

  // Whether anybody wants to know how far requests are: the plan, or whoever observes. Else no stream writes it.
  bool is_followed() const {
    const int64_t lead = row_.lead_ns.load(std::memory_order_relaxed);
    const bool used = lead > kLeadNever && lead < kLeadAlways && row_.inflation_ppm.load(std::memory_order_relaxed);
    return used || observed_;
  }

  // How soon to look again, INT64_MAX where nobody needs to know: only the agent sees what a stream writes.
  int64_t look_within_ns() const { return marked_ && is_followed() ? poll_ns() : INT64_MAX; }

  // Look at the progress of every request, also where the plan has no use for it.
  void observe(bool on) { observed_ = on; }

  // What the request still takes alone, at the plan's quantile; -1: not known. The time since it was last sighted is
  // not taken off: with the gate open it may have got nowhere. So nobody needs to look before the slack seems to run
  // out.
  int64_t remaining_ns(uint32_t slot) {
    State& s = states_[slot];
    const uint32_t ppm = row_.quantile_ppm.load(std::memory_order_relaxed);
    if (s.bound_ppm != ppm) {
      s.bound_ppm = ppm;
      s.bound_ns = models_[s.kind].bound_ns(s.position, ppm);
    }
    return s.bound_ns;
  }

  // The request is done; `undisturbed_since_ns` as in FinishedRequest.
  void finish(uint32_t slot, int64_t begin_ns, int64_t now, int64_t undisturbed_since_ns) {
    const State& s = states_[slot];
    if (s.epoch != epoch_) traces_[slot].start();
    ProgressModel& model = models_[s.kind];
    const int64_t error_ppm = model.learn(traces_[slot], {begin_ns, now, s.steps, undisturbed_since_ns});
    alone_[s.kind] = {model.median_alone_ns(), model.bound_alone_ns(kAlonePpm)};
    if (s.kind == kRequest) {
      single_step_ = model.single_step();
      service_ns_ = model.service_ns();
    }
    if (error_ppm < 0) return;
    row_.progress_error_ppm.fetch_add(static_cast<uint64_t>(error_ppm), std::memory_order_relaxed);
    row_.progress_scored.fetch_add(1, std::memory_order_relaxed);
  }

  // Median service time alone of requests of that kind; -1: not known.
  int64_t median_alone_ns(WorkKind kind) const { return alone_[kind].median_ns; }

  // For others: a long service time alone; of an engine, of the kind of step that takes longest.
  void publish_alone(bool engine) const {
    const int64_t steps_ns = std::max(alone_[kPrefill].bound_ns, alone_[kDecode].bound_ns);
    row_.alone_ns.store(engine ? steps_ns : alone_[kRequest].bound_ns, std::memory_order_relaxed);
  }

  // For people: how far the request in the slot is.
  void publish(uint32_t slot, int64_t begin_ns, int64_t now, int64_t undisturbed_since_ns) const {
    const State& s = states_[slot];
    const int64_t left = models_[s.kind].expected_ns(s.position, now - s.seen_ns, undisturbed_since_ns <= s.seen_ns);
    const double spent = static_cast<double>(now - begin_ns);
    const double done = left < 0 ? 0 : spent / std::max(1.0, spent + static_cast<double>(left));
    row_.remaining_ns.store(left, std::memory_order_relaxed);
    row_.progress_ppm.store(static_cast<uint32_t>(1e6 * done), std::memory_order_relaxed);
  }

  void publish_none() const {
    row_.remaining_ns.store(-1, std::memory_order_relaxed);
    row_.progress_ppm.store(0, std::memory_order_relaxed);
  }

  // Checkpoints were chosen anew: what was learnt of the old ones is void.
  void forget_checkpoints() {
    models_[kRequest].forget_checkpoints();
    ++epoch_;
  }

 private:
  // Of the time alone that is published: one whatever the plan. What a p99 of a few hundred holds is the host's hiccups.
  static constexpr uint32_t kAlonePpm = 950'000;
  static constexpr int64_t kShortestPollNs = 20'000;
  static constexpr int64_t kLongestPollNs = 250'000;

  struct State {
    int64_t seen_ns;    // when it was seen at `position`
    int64_t bound_ns;   // what it still takes from there, at the quantile of `bound_ppm`; -1: not known
    uint32_t bound_ppm;  // 0: to be worked out
    uint32_t position;  // what it has passed
    uint32_t enqueued;  // what it will have passed when all enqueued work is done
    uint32_t steps;     // enqueued, too
    uint32_t epoch;
    uint32_t tag;
    WorkKind kind;
  };

  struct Alone {
    int64_t median_ns = -1;
    int64_t bound_ns = -1;
  };

  int64_t poll_ns() const { return std::min(std::max(service_ns_ / 128, kShortestPollNs), kLongestPollNs); }

  JobRow& row_;
  const a32* const words_;
  std::vector<State> states_;
  std::vector<Trace> traces_;
  ProgressModel models_[kWorkKinds];
  Alone alone_[kWorkKinds];
  bool single_step_ = true;  // as the model of requests has it
  int64_t service_ns_ = -1;  // median, likewise
  uint32_t epoch_ = 0;       // of the choice of checkpoints
  bool marked_ = false;      // streams write progress words
  bool observed_ = false;
  int64_t looked_ns_ = 0;
};

}  // namespace herald
