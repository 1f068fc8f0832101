// The op hook: a RecordFunction callback that sees every op of the process and passes heavy ones through the gate.
// The only file that includes torch.
#include <ATen/record_function.h>

#include <algorithm>
#include <new>

#include "op_timer.hpp"
#include "process.hpp"
#include "signature.hpp"

namespace herald {
namespace {

// Leaked on purpose: threads may be inside a callback while the interpreter shuts down.
OpNames* g_names = new OpNames;
at::CallbackHandle g_callback = at::INVALID_CALLBACK_HANDLE;

struct ThreadState {
  static constexpr uint32_t kNameSlots = 256;
  static constexpr uint32_t kFlushEvery = 64;

  uint32_t serving_era = 0;  // the era in which it began a request: then it is an inference thread, never gated
  uint32_t ops_seen = 0;
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

ThreadState& thread_state() {
  static thread_local ThreadState state;
  return state;
}

void before_op(Gate& gate, ThreadState& thread, const at::RecordFunction& fn, const OpName& name) {
  if (++thread.ops_seen == ThreadState::kFlushEvery) {
    gate.row().ops_seen.fetch_add(thread.ops_seen, std::memory_order_relaxed);
    thread.ops_seen = 0;
  }
  const c10::DeviceType kind = gate.is_cuda() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
  const Operands op = SignatureReader(kind).read(name, fn.inputs());
  if (op.device_index < 0) return;
  Signature* s = g_costs->find(op.key);
  if (!s) s = g_costs->add(op.key, op.numel, describe(name, fn.inputs()));
  const Kind known = s ? s->kind.load(std::memory_order_acquire) : kUnknown;
  const int64_t self_ns = s ? s->self_ns.load(std::memory_order_relaxed) : 0;
  if (known == kNone && !thread.timer.inside()) return;
  if (known == kLight && !gate.all_heavy() && !thread.timer.inside()) {
    gate.row().light_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
    return;
  }
  if (!thread.timer.inside()) {
    // An op of unknown length counts as a whole quantum: a wait comes before it and before whatever follows.
    const int64_t quantum = gate.table().header().quantum_ns.load(std::memory_order_relaxed);
    gate.pass(static_cast<uint32_t>(op.device_index), known == kUnknown ? std::max(self_ns, quantum) : self_ns);
    if (known == kUnknown) {
      gate.row().ops_unknown.fetch_add(1, std::memory_order_relaxed);
    } else {
      gate.row().gated_ns.fetch_add(static_cast<uint64_t>(self_ns), std::memory_order_relaxed);
    }
  }
  // Time an unknown op together with all that it calls; waits inside it would count as its own time, so there are none.
  if (s && (known == kUnknown || thread.timer.inside())) {
    thread.timer.begin(&fn, *s, gate.is_cuda() ? &cuda_driver() : nullptr, op.device_index);
  }
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& fn) {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  if (!gate) return nullptr;
  ThreadState& thread = thread_state();
  if (thread.serving_era == g_serving_era.load(std::memory_order_relaxed)) return nullptr;
  const OpName* name = thread.intern(fn.name());
  if (name->device_op) before_op(*gate, thread, fn, *name);
  return nullptr;
}

void on_end(const at::RecordFunction& fn, at::ObserverContext*) {
  OpTimer& timer = thread_state().timer;
  if (timer.inside()) timer.end(&fn, *g_costs);
}

}  // namespace

void enable_callback() {
  if (g_callback == at::INVALID_CALLBACK_HANDLE) {
    g_callback = at::addGlobalCallback(
        at::RecordFunctionCallback(on_start, on_end).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
  } else {
    at::reenableCallback(g_callback);
  }
}

void disable_callback() { at::disableCallback(g_callback); }

void mark_serving_thread() { thread_state().serving_era = g_serving_era.load(std::memory_order_relaxed); }

void reset_thread() {
  thread_state().~ThreadState();
  new (&thread_state()) ThreadState;
}

}  // namespace herald
