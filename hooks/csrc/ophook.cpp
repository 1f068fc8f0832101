// The op hook: RecordFunction callbacks that see every op of the process and pass heavy ones through the gate.
// The only file that includes torch.
#include <ATen/record_function.h>
#include <pthread.h>

#include <algorithm>
#include <new>

#include "op_timer.hpp"
#include "process.hpp"
#include "signature.hpp"

namespace herald {
namespace {

// Leaked on purpose: threads may be inside a callback while the interpreter shuts down.
OpNames* g_names = new OpNames;

struct ThreadState {
  static constexpr uint32_t kNameSlots = 256;
  static constexpr uint32_t kFlushEvery = 64;
  static constexpr uint32_t kAllKnownAfter = 20'000;

  uint32_t serving_era = 0;  // the era in which it began a request: then it is an inference thread, never gated
  uint32_t ops_seen = 0;  // not yet in the job's row
  uint32_t ops_since_unknown = 0;
  OpTimer timer;
  struct {
    const char* pointer = nullptr;
    const OpName* name = nullptr;
  } names[kNameSlots];

  // The same pointer can carry another name later (autograd's are temporary strings), so the text decides.
  const OpName* intern(const char* text) {
    auto& slot = names[(reinterpret_cast<uintptr_t>(text) >> 3) % kNameSlots];
    if (slot.pointer != text || slot.name->text != text) slot = {text, g_names->intern(text)};
    return slot.name;
  }
};

// A pointer in the static TLS block costs one load; an object in a loaded library costs a call and a guard.
__attribute__((tls_model("initial-exec"))) thread_local ThreadState* t_state = nullptr;

ThreadState& make_thread_state() {
  static const pthread_key_t at_exit = [] {
    pthread_key_t key;
    pthread_key_create(&key, [](void* state) {
      t_state = nullptr;
      delete static_cast<ThreadState*>(state);
    });
    return key;
  }();
  t_state = new ThreadState;
  pthread_setspecific(at_exit, t_state);
  return *t_state;
}

inline ThreadState& thread_state() { return t_state ? *t_state : make_thread_state(); }

// Two callbacks. The gate's sees where an op begins and is always on. The learner's sees where it ends, too, and is on
// only while there are ops whose time is unknown: an end callback costs a quarter of an event.
class Callbacks {
 public:
  void attach() {
    Guard guard(mutex_);
    set(gate_, true);
    set(learner_, true);
    learning_.store(true, std::memory_order_relaxed);
  }

  void detach() {
    Guard guard(mutex_);
    set(gate_, false);
    set(learner_, false);
  }

  void reset_lock() { new (&mutex_) Mutex; }

  void learn(bool wanted) {
    if (learning_.load(std::memory_order_relaxed) == wanted) return;
    Guard guard(mutex_);
    if (!gate_.on) return;
    set(learner_, wanted);
    learning_.store(wanted, std::memory_order_relaxed);
  }

 private:
  struct Callback {
    at::RecordFunctionCallback::StartCallback start;
    at::RecordFunctionCallback::EndCallback end;
    at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
    bool on = false;
  };

  // Adding, enabling and disabling take torch's own lock; threads pick the change up at their next op.
  static void set(Callback& c, bool on) {
    if (c.on == on) return;
    c.on = on;
    if (c.handle == at::INVALID_CALLBACK_HANDLE) {
      c.handle = at::addGlobalCallback(
          at::RecordFunctionCallback(c.start, c.end).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
    } else if (on) {
      at::reenableCallback(c.handle);
    } else {
      at::disableCallback(c.handle);
    }
  }

  static std::unique_ptr<at::ObserverContext> on_gate(const at::RecordFunction& fn);
  static std::unique_ptr<at::ObserverContext> on_learn(const at::RecordFunction& fn);
  static void on_learnt(const at::RecordFunction& fn, at::ObserverContext*);

  Mutex mutex_;
  Callback gate_{&on_gate, nullptr};
  Callback learner_{&on_learn, &on_learnt};
  std::atomic<bool> learning_{false};
};

Callbacks* g_callbacks = new Callbacks;

// What an op is known to cost, and what it works on.
struct Op {
  Operands operands;
  Signature* signature;  // null when the table of costs is full
  Kind kind;
};

// False when the op is none of ours: no gate, a serving thread, no device time, another device.
bool look_up(const Gate* gate, ThreadState& thread, const at::RecordFunction& fn, Op* op) {
  if (!gate || thread.serving_era == g_serving_era.load(std::memory_order_relaxed)) return false;
  const OpName& name = *thread.intern(fn.name());
  if (!name.device_op) return false;
  const c10::DeviceType device = gate->is_cuda() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
  op->operands = SignatureReader(device).read(name, fn.inputs());
  if (op->operands.device_index < 0) return false;
  op->signature = g_costs->find(op->operands.key);
  if (!op->signature) {
    op->signature = g_costs->add(op->operands.key, op->operands.numel, describe(name, fn.inputs()));
  }
  op->kind = op->signature ? op->signature->kind.load(std::memory_order_acquire) : kUnknown;
  return true;
}

void count_op(Gate& gate, ThreadState& thread, bool unknown) {
  if (unknown) {
    thread.ops_since_unknown = 0;
    g_callbacks->learn(true);
  }
  if (++thread.ops_seen < ThreadState::kFlushEvery) return;
  gate.row().ops_seen.fetch_add(thread.ops_seen, std::memory_order_relaxed);
  thread.ops_since_unknown += thread.ops_seen;
  thread.ops_seen = 0;
  if (thread.ops_since_unknown > ThreadState::kAllKnownAfter) g_callbacks->learn(false);
}

std::unique_ptr<at::ObserverContext> Callbacks::on_gate(const at::RecordFunction& fn) {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  ThreadState& thread = thread_state();
  Op op;
  // A wait inside an op that is being timed would count as its time, so there is none.
  if (!look_up(gate, thread, fn, &op) || thread.timer.inside()) return nullptr;
  count_op(*gate, thread, op.kind == kUnknown);
  if (op.kind == kNone) return nullptr;
  const int64_t self_ns = op.signature ? op.signature->self_ns.load(std::memory_order_relaxed) : 0;
  if (op.kind == kLight && !gate->all_heavy()) {
    gate->row().light_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
  } else if (op.kind == kUnknown) {
    gate->pass_unknown(static_cast<uint32_t>(op.operands.device_index));
  } else {
    gate->pass_known(static_cast<uint32_t>(op.operands.device_index), self_ns);
  }
  return nullptr;
}

// Times an unknown op together with all that it calls.
std::unique_ptr<at::ObserverContext> Callbacks::on_learn(const at::RecordFunction& fn) {
  const Gate* gate = g_gate.load(std::memory_order_acquire);
  ThreadState& thread = thread_state();
  Op op;
  if (look_up(gate, thread, fn, &op) && op.signature && (op.kind == kUnknown || thread.timer.inside())) {
    const CudaDriver* cuda = gate->is_cuda() ? &cuda_driver() : nullptr;
    thread.timer.begin(&fn, *op.signature, cuda, op.operands.device_index);
  }
  return nullptr;
}

void Callbacks::on_learnt(const at::RecordFunction& fn, at::ObserverContext*) {
  if (t_state && t_state->timer.inside()) t_state->timer.end(&fn, *g_costs);
}

}  // namespace

void enable_callbacks() { g_callbacks->attach(); }

void disable_callbacks() { g_callbacks->detach(); }

void mark_serving_thread() { thread_state().serving_era = g_serving_era.load(std::memory_order_relaxed); }

void reset_hook_in_child() {
  g_names = new OpNames;
  g_callbacks->reset_lock();
  if (t_state) *t_state = ThreadState();
}

}  // namespace herald
