// What is known of each op signature: its self device time and its class. Read on every op, lock-free; learnt as the
// job runs; loaded from and saved to a file by Python.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mutex.hpp"

namespace herald {

enum Kind : uint8_t {
  kUnknown = 0,  // not timed often enough yet: counts as heavy
  kNone = 1,     // no device time: wrappers, views
  kLight = 2,    // short and small: may run beside others
  kHeavy = 3,    // takes turns
};

// What is light where only time and size are known. Set by herald.hooks.classes, for a GPU from measured harm.
struct LightRule {
  uint32_t none_below_ns = 2'500;   // shorter is indistinguishable from an empty pair of events
  uint32_t light_ns = 20'000;
  uint64_t light_numel = 1 << 18;
};

struct Signature {
  std::atomic<uint64_t> key{0};  // 0: empty slot
  std::atomic<uint32_t> self_ns{0};
  std::atomic<uint32_t> samples{0};
  std::atomic<Kind> kind{kUnknown};
  std::atomic<bool> told{false};  // the kind is a profile's, not the rule's
  std::atomic<uint32_t> text{0};  // index into Costs::texts
  std::atomic<uint64_t> numel{0};
};

class Costs {
 public:
  static constexpr uint32_t kSlots = 1 << 14;
  static constexpr uint32_t kMostSignatures = kSlots * 3 / 4;
  static constexpr uint32_t kSamples = 3;  // the least of three timings: interference only ever adds

  LightRule rule;

  // The entry of a key; null when it is new.
  Signature* find(uint64_t key) {
    for (uint32_t i = static_cast<uint32_t>(key) & (kSlots - 1);; i = (i + 1) & (kSlots - 1)) {
      const uint64_t found = slots_[i].key.load(std::memory_order_acquire);
      if (found == key) return &slots_[i];
      if (found == 0) return nullptr;
    }
  }

  // Adds a key; null when the table is full (such ops stay unknown, hence heavy).
  Signature* add(uint64_t key, uint64_t numel, std::string text) {
    Guard guard(mutex_);
    if (Signature* known = find(key)) return known;
    if (texts_.size() >= kMostSignatures) return nullptr;
    uint32_t i = static_cast<uint32_t>(key) & (kSlots - 1);
    while (slots_[i].key.load(std::memory_order_relaxed) != 0) i = (i + 1) & (kSlots - 1);
    Signature& slot = slots_[i];
    slot.numel.store(numel, std::memory_order_relaxed);
    slot.text.store(static_cast<uint32_t>(texts_.size()), std::memory_order_relaxed);
    texts_.push_back(std::move(text));
    slot.key.store(key, std::memory_order_release);
    order_.push_back(&slot);
    return &slot;
  }

  void sample(Signature& s, int64_t self_ns) {
    const uint32_t bounded = self_ns < 0 ? 0 : self_ns > UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(self_ns);
    const uint32_t n = s.samples.load(std::memory_order_relaxed);
    if (n == 0 || bounded < s.self_ns.load(std::memory_order_relaxed)) s.self_ns.store(bounded, std::memory_order_relaxed);
    s.samples.store(n + 1, std::memory_order_relaxed);
    if (n + 1 >= kSamples) s.kind.store(classify(s), std::memory_order_release);
  }

  // What a profile says. `kind` kUnknown: by the rule.
  void set(uint64_t key, uint32_t self_ns, uint64_t numel, Kind kind, const char* text) {
    Signature* s = add(key, numel, text);
    if (!s) return;
    s->self_ns.store(self_ns, std::memory_order_relaxed);
    s->samples.store(kSamples, std::memory_order_relaxed);
    s->told.store(kind != kUnknown, std::memory_order_relaxed);
    s->kind.store(kind == kUnknown ? classify(*s) : kind, std::memory_order_release);
  }

  // Another rule: for what was learnt before, too.
  void change(const LightRule& to) {
    Guard guard(mutex_);
    rule = to;
    for (Signature* s : order_) {
      const bool learnt = s->samples.load(std::memory_order_relaxed) >= kSamples;
      if (learnt && !s->told.load(std::memory_order_relaxed)) s->kind.store(classify(*s), std::memory_order_release);
    }
  }

  Kind classify(const Signature& s) const {
    const uint32_t self_ns = s.self_ns.load(std::memory_order_relaxed);
    if (self_ns < rule.none_below_ns) return kNone;
    const bool small = s.numel.load(std::memory_order_relaxed) <= rule.light_numel;
    return small && self_ns <= rule.light_ns ? kLight : kHeavy;
  }

  size_t size() {
    Guard guard(mutex_);
    return order_.size();
  }

  // The i-th signature in the order of first sight, with its readable form.
  const Signature* at(size_t i, std::string* text) {
    Guard guard(mutex_);
    if (i >= order_.size()) return nullptr;
    *text = texts_[order_[i]->text.load(std::memory_order_relaxed)];
    return order_[i];
  }

 private:
  std::unique_ptr<Signature[]> slots_{new Signature[kSlots]};
  Mutex mutex_;
  std::vector<std::string> texts_;
  std::vector<Signature*> order_;
};

}  // namespace herald
