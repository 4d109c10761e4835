// Counts the instructions of Python calls under callgrind: collecting begins right before the call and ends right
// after it, so that nothing around it has to be subtracted. Loaded through ctypes by gate_cases.py.
#include <valgrind/callgrind.h>

extern "C" {

struct PyObject;  // Python's own; these three functions are part of its stable interface
PyObject* PyObject_CallNoArgs(PyObject* call);
void Py_DecRef(PyObject* object);

// Until then the program runs uncounted, several times as fast.
void start_instrumentation() { CALLGRIND_START_INSTRUMENTATION; }

// Calls `before`, uncounted, and then `call`, `times` times over, and dumps what was counted under `name`.
// An exception ends it and is left to Python.
void count(PyObject* before, PyObject* call, int times, const char* name) {
  CALLGRIND_ZERO_STATS;
  for (int i = 0; i < times; ++i) {
    PyObject* result = PyObject_CallNoArgs(before);
    if (result == nullptr) return;
    Py_DecRef(result);
    CALLGRIND_TOGGLE_COLLECT;
    result = PyObject_CallNoArgs(call);
    CALLGRIND_TOGGLE_COLLECT;
    if (result == nullptr) return;
    Py_DecRef(result);
  }
  CALLGRIND_DUMP_STATS_AT(name);
}
}
