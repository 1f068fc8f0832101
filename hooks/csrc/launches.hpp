// Device work that torch's dispatcher never announces (a Triton kernel, a compiled region, a graph's replay): Python says
// where it begins and ends, and here it becomes an event like an op's, for every callback that there is.
//
// torch's own _RecordFunctionFast fires only while torch.profiler runs; _record_function_with_args_enter costs 2 us.
// Python calls in through builtin functions made without Python's headers: 0.05 us a call where ctypes takes 0.4 us.
#pragma once

#include <ATen/record_function.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

namespace herald {

// What is needed of Python's stable ABI.
struct PythonApi {
  void* (*get_item)(void*, ssize_t) = find<void* (*)(void*, ssize_t)>("PySequence_GetItem");
  void* (*tuple_item)(void*, ssize_t) = find<void* (*)(void*, ssize_t)>("PyTuple_GetItem");  // borrowed
  ssize_t (*size)(void*) = find<ssize_t (*)(void*)>("PySequence_Size");
  void* (*type)(void*) = find<void* (*)(void*)>("PyObject_Type");
  void* (*attribute)(void*, void*) = find<void* (*)(void*, void*)>("PyObject_GetAttr");
  void* (*pointer)(void*) = find<void* (*)(void*)>("PyLong_AsVoidPtr");
  const char* (*bytes)(void*) = find<const char* (*)(void*)>("PyBytes_AsString");
  void (*retain)(void*) = find<void (*)(void*)>("Py_IncRef");
  void (*release)(void*) = find<void (*)(void*)>("Py_DecRef");
  void (*clear_error)() = find<void (*)()>("PyErr_Clear");
  void* none = dlsym(RTLD_DEFAULT, "_Py_NoneStruct");
  void* cdata = find<void* (*)(const char*)>("PyUnicode_InternFromString")("_cdata");

  template <typename F>
  static F find(const char* symbol) {
    return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, symbol));
  }
};

// One event between its begin and its end; a thread's open ones form a list.
struct Launch {
  static constexpr ssize_t kMostInputs = 8;

  explicit Launch(Launch* outer) : outer(outer) {}

  Launch* const outer;
  std::array<c10::IValue, kMostInputs> inputs;
  std::optional<at::RecordFunction> event;  // none: nobody listens
};

class Launches {
 public:
  // `begin(name, values)`, from Python with the GIL held. `types`: the two exact types that are tensors; a subclass would
  // answer in Python. Of many values, the first and the last tensors tell the shapes.
  static void* begin(void* types, void* const* args, ssize_t num_args) {
    const char* name = num_args == 2 ? python().bytes(args[0]) : nullptr;
    if (!name) return nullptr;  // with Python's TypeError set
    t_innermost = new Launch(t_innermost);
    auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
    if (callbacks) {
      Launch& launch = *t_innermost;
      const size_t num_inputs = read(types, args[1], launch);
      launch.event.emplace(std::move(*callbacks));
      launch.event->before(std::string_view(name), c10::ArrayRef<const c10::IValue>(launch.inputs.data(), num_inputs));
      // A region frees its inputs as it goes: no reference of ours may keep them.
      for (c10::IValue& input : launch.inputs) input = c10::IValue();
    }
    return none();
  }

  // `end()`: of the innermost open one of this thread.
  static void* end(void*, void*) {
    if (Launch* launch = t_innermost) {
      launch->event.reset();
      t_innermost = launch->outer;
      delete launch;
    }
    return none();
  }

 private:
  static const PythonApi& python() {
    static const PythonApi api;
    return api;
  }

  static void* none() {
    python().retain(python().none);
    return python().none;
  }

  static size_t read(void* types, void* values, Launch& launch) {
    const ssize_t num_values = python().size(values);
    if (num_values < 0) python().clear_error();
    ssize_t num = 0;
    ssize_t i = 0;
    for (; i < num_values && num < Launch::kMostInputs / 2; ++i) num += read_tensor(types, values, i, launch.inputs[num]);
    ssize_t last = num_values;
    while (last > i && num < Launch::kMostInputs) num += read_tensor(types, values, --last, launch.inputs[num]);
    return static_cast<size_t>(num);
  }

  static bool read_tensor(void* types, void* values, ssize_t i, c10::IValue& out) {
    const PythonApi& py = python();
    void* value = py.get_item(values, i);
    void* type = value ? py.type(value) : nullptr;
    at::TensorImpl* impl = nullptr;
    if (type && (type == py.tuple_item(types, 0) || type == py.tuple_item(types, 1))) {
      if (void* number = py.attribute(value, py.cdata)) {
        impl = static_cast<at::TensorImpl*>(py.pointer(number));
        py.release(number);
      }
      if (!impl) py.clear_error();
    }
    if (impl) out = at::Tensor(c10::intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>::reclaim_copy(impl));
    if (type) py.release(type);
    if (value) py.release(value);
    else py.clear_error();
    return impl != nullptr;
  }

  __attribute__((tls_model("initial-exec"))) static inline thread_local Launch* t_innermost = nullptr;
};

// PyMethodDef of Python's stable ABI.
struct PythonMethod {
  const char* name;
  void* function;
  int flags;
  const char* doc;
};

inline PythonMethod launch_methods[] = {
    {"begin", reinterpret_cast<void*>(&Launches::begin), 0x0080 /* METH_FASTCALL */, nullptr},
    {"end", reinterpret_cast<void*>(&Launches::end), 0x0004 /* METH_NOARGS */, nullptr},
};

}  // namespace herald
