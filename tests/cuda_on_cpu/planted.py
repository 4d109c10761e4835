"""Mistakes that the tests must notice: each is a substitution in a copy of the sources, and what must then be seen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Planted:
    """One mistake."""

    name: str
    file: str
    """In csrc."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    seen: str
    """Part of what the failing run says; in the layer "end to end" the test that fails."""
    sanitizer: str = "none"
    storage: str = "f32"
    layer: str = "source"
    """Which tests notice it: a key of RUNNERS in test_planted.py."""
    tests: str = "device_tests"
    """The file of these, in the layer "end to end"."""


STEP, ZERO, DEVICE = "cuda/kernels.cu", "cuda/zero.cu", "cuda/device.cuh"
STORAGE, PHILOX = "cuda/storage.cuh", "core/philox.h"

# ---- the source of the kernels, run on the host ---------------------------------------------------------------------

BOUNDS = [
    Planted("an element beyond the end", STEP, "end = row.count;", "end = row.count + 1;", "heap-buffer-overflow",
            sanitizer="address"),
    Planted("elements that are not all there taken at once", STORAGE, "return count == kElements<T> &&",
            "return count > 0 &&", "heap-buffer-overflow", sanitizer="address"),
    Planted("an element beyond the end, without a sanitizer", STEP, "end = row.count;", "end = row.count + 1;",
            "of 1 elements, misaligned operands 0x0: param[1] is"),
    Planted("tail left out", STEP, "i < part.count; ++i)", "i < part.count / kElements<T> * kElements<T>; ++i)",
            "of 1 elements"),
    Planted("no alignment needed", STORAGE, "reinterpret_cast<uintptr_t>(at) % (size == 1 ? 8 : 16) == 0", "true",
            "misaligned address", sanitizer="address"),
    Planted("alignment of the first operand only", STEP, "is_whole<T>(to, size(k), part.count)",
            "(k > 0 ? part.count == kElements<T> : is_whole<T>(to, size(k), part.count))", "misaligned address",
            sanitizer="address"),
    Planted("alignment of 8 bytes", STORAGE, "(size == 1 ? 8 : 16)", "8", "misaligned address", sanitizer="address",
            storage="mixed"),
    Planted("chunk begins in 32 bits", STEP, "int64_t begin = part.block * kUnit",
            "int64_t begin = int(part.block) * kUnit", "signed integer overflow", sanitizer="address"),
    Planted("wrong stride over chunks", STEP, "c += gridDim.x)", "c += gridDim.x + 1)", "should be"),
    Planted("wrong stride over units", STEP, "unit += kWarps)", "unit += kWarps + 1)", "should be"),
]  # fmt: skip

STRIDED = [
    Planted("every operand by the strides of the first", STEP, "layout[1 + (1 + index(k)) * ndim + d]",
            "layout[1 + ndim + d]", "strided elements"),
    Planted("second chunk strided as the first", STEP, "const int ndim = int(layout[0]);",
            "const int ndim = int(layout[0]);\n    number %= kChunk;", "8733 strided elements"),
]  # fmt: skip

ARITHMETIC = [
    Planted("the factor forgotten", STEP, "if (numbers.factor != 1) {", "if (false) {", "row 0 of 1 elements"),
    Planted("a new average as it was", STEP, "launch.average_is_new ? param[i] :", "false ? param[i] :",
            "new average"),
    Planted("a clipped gradient not rounded", STEP, "    decode(operands.raw[1], operands.format(1), grad);\n  }",
            "  }", "clip 0.3", storage="bf16"),
    Planted("states swapped on the way back", STEP, "states[k][i] = state[k];",
            "states[kStates - 1 - k][i] = state[k];", "adam"),
    Planted("param and grad swapped", STEP, "(param[i], grad[i], state);", "(grad[i], param[i], state);",
            "param[0] is"),
    Planted("division by a reciprocal", STEP, "grad[i] / numbers.grad_scale", "grad[i] * (1 / numbers.grad_scale)",
            "grad_scale 3.0"),
    Planted("the scaled gradient not stored", STEP, "operands.store(part, pass == kUnscales ? kGrad",
            "operands.store(part, pass == kUnscales ? 0", "grad_scale 3.0"),
    Planted("gradient zeroed before it is read", STEP, "    operands.load(part, pass == kUnscales",
            "    operands.raw[1] = {};\n    if (launch.zero_grad) operands.store(part, kGrad);\n"
            "    operands.load(part, pass == kUnscales", "zero_grad"),
    Planted("bf16 ties away from zero", DEVICE, "0x7fff + ((bits >> 16) & 1)", "0x8000", "should be", storage="bf16"),
    Planted("bf16 cut off", DEVICE, "(bits + 0x7fff + ((bits >> 16) & 1)) >> 16", "bits >> 16", "should be",
            storage="bf16"),
    Planted("fp16 cut off", DEVICE, "__float2half_rn(x)", "__float2half_rz(x)", "should be", storage="f16"),
]  # fmt: skip


def _mixed(name: str, file: str, old: str, new: str, seen: str, sanitizer: str = "none") -> Planted:
    return Planted(name, file, old, new, seen, sanitizer=sanitizer, storage="mixed")


MIXED = [
    _mixed("rounded to nearest and not up or down", STORAGE, "__float_as_uint(from[i]) + half_of(random, i)",
           "__float_as_uint(from[i]) + 0x7fff", "stochastic"),
    _mixed("random bits of another operand", STORAGE, "row.parameter, k),", "row.parameter, 0),", ": state "),
    _mixed("random bits of the step before", STORAGE, "RandomKey::of(row.seed, surroundings.step,",
           "RandomKey::of(row.seed, surroundings.step - 1,", "should be"),
    _mixed("random bits of another shard", STORAGE, "uint64_t(row.first_element + surroundings.first)",
           "uint64_t(surroundings.first)",
           "should be"),
    _mixed("random bits of one counter where it takes two", STORAGE, "i = ahead == 0 ? 0 : 1; i >= 0",
           "i = 0; i >= 0", "should be"),
    _mixed("a round of Philox left out", PHILOX, "round < kPhiloxRounds; ++round) {\n    const uint64_t a",
           "round < kPhiloxRounds - 1; ++round) {\n    const uint64_t a", "should be"),
    _mixed("a remainder without its sign", STORAGE, "int32_t(int16_t(half_of(companion.words, i)))",
           "int32_t(half_of(companion.words, i))", "remainder"),
    _mixed("a remainder that leads out of the numbers", STORAGE,
           "is_below ? magnitude == 0 : magnitude >= kInfinity", "false", "remainder"),
    _mixed("a master that the parameter has left", STORAGE, "== own ? wide : own", "== own ? wide : wide", "master"),
    _mixed("a parameter that is its master's upper half", STORAGE, "(bits_or_nan(x) + 0x8000) >> 16",
           "bits_or_nan(x) >> 16", "should be"),
    _mixed("a compensation of the other sign", STORAGE, "rest[i] = from[i] - rest[i];", "rest[i] = rest[i] - from[i];",
           "compensation"),
    _mixed("the companion in the average's place", STEP, "kRule + launch.averages : k", "kRule : k",
           "companion["),
    _mixed("an average stored as the parameter is", STEP, "decode(operands.raw[kAverage], operands.format(kAverage),",
           "decode(operands.raw[kAverage], operands.format(0),", ", average"),
    _mixed("an average towards the parameter as it was", STEP, "enum Pass { kUnscales, kApplies, kAverages, kPasses };",
           "enum Pass { kUnscales = 0, kAverages = 1, kApplies = 2, kPasses = 3 };", ", average"),
    _mixed("a scale of a thread's elements", STORAGE, "scale_of(largest_of_warp(largest_of(from, surroundings.count)))",
           "scale_of(largest_of(from, surroundings.count))", "u8"),
    _mixed("a scale written while others read it", STORAGE,
           "scale_of(largest_of_warp(largest_of(from, surroundings.count)))",
           "scale_of(largest_of(from, surroundings.count))", "data race", "thread"),
    _mixed("the scale of the first block", STORAGE, "row.scales[state][surroundings.block], to)",
           "row.scales[state][0], to)", "should be"),
    _mixed("blocks that go on in the next line", STEP, "min(begin + kBlockOf8Bits, (line + 1) * row.columns)",
           "begin + kBlockOf8Bits", "should be"),
    _mixed("lines counted as whole blocks", STEP, "begin = line * row.columns +", "begin = line * 256 +",
           "should be"),
    _mixed("a magnitude that vanishes", STORAGE, "!has_sign && __float_as_uint(from[i]) != 0 ? 1 : 0", "0",
           "magnitude"),
    _mixed("codes without their sign", STORAGE, "stored |= bits >> 24 & 0x80;", "stored |= 0;", "sign"),
    _mixed("codes of a block that is not finite", STORAGE, "scale == kNaN ? uint32_t(top) : stored & 0xff",
           "stored & 0xff", "should be"),
    _mixed("codes cut off", STORAGE, "kHalf - 1 + (magnitude >> kQuantumBits & 1)", "0", "sign"),
]  # fmt: skip

TABLE = [
    _mixed("dtypes in one launch", "cuda/buckets.cpp", "same = format_of(a, k) == format_of(b, k);", "same = true;",
           "dtypes are mixed up"),
    _mixed("companions in one launch", "cuda/buckets.cpp", "bool same = a.companion == b.companion &&", "bool same =",
           "companions are mixed up"),
    _mixed("steps in one launch", "cuda/buckets.cpp", "a.next_step == b.next_step ||", "true ||",
           "random bits of the first row's step"),
    _mixed("blocks cut like other elements", "cuda/buckets.cpp", "cut(chunks, i, elements_to_cut(rows[i]), kChunk);",
           "cut(chunks, i, rows[i].count, kChunk);", "blocks of 8 bits are cut"),
    _mixed("scales in the places of operands", "cuda/buckets.cpp", "task.scales + 2, task.scales + 2 + kMaxStates",
           "task.scales, task.scales + kMaxStates", "tables: scales"),
]  # fmt: skip

FOUND_INF = [
    Planted(
        "found_inf ignored",
        STEP,
        "launch.found_inf != nullptr && *launch.found_inf != 0",
        "false",
        "found_inf 1.000000",
    ),
    Planted("found_inf is 1 or 0", STEP, "*launch.found_inf != 0", "*launch.found_inf == 1", "found_inf 2.500000"),
    Planted("found_inf is positive", STEP, "*launch.found_inf != 0", "*launch.found_inf > 0", "found_inf nan"),
    Planted(
        "a step that is not taken is counted",
        STEP,
        "if (skip || launch.counts_count == 0) return;",
        "if (launch.counts_count == 0) return;",
        "a step count is",
    ),
]

FOLDING = [
    Planted("step counts are floats", STEP, "read(stored.step, is_double(0))", "read(stored.step, false)", "should be"),
    Planted("options in order", STEP, "(options.bytes)[number.option]", "(options.bytes)[i]", "device numbers"),
    Planted(
        "constants computed once",
        STEP,
        "if (next.step != computed_step ||",
        "if (computed_step != computed_step ||",
        "should be",
    ),
    Planted(
        "as many counts as threads",
        STEP,
        "i < launch.counts_count; i += kThreads)",
        "i < launch.counts_count; i += launch.counts_count)",
        "a step count is",
    ),
]

ORDER = [
    Planted(
        "no barrier ahead of the constants",
        STEP,
        "      __syncthreads();  // nobody reads the rule of the last chunk any more\n",
        "",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "no barrier behind the constants",
        STEP,
        "computed_row = row;\n        }\n      }\n      __syncthreads();\n",
        "computed_row = row;\n        }\n      }\n",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "no barrier behind the ticket",
        STEP,
        "  __syncthreads();\n  if (!is_last) return;",
        "  if (!is_last) return;",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "no fence ahead of the ticket",
        STEP,
        "    __threadfence();\n    is_last",
        "    is_last",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "no fence behind the ticket",
        STEP,
        "== gridDim.x - 1;\n    __threadfence();\n",
        "== gridDim.x - 1;\n",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "a ticket that is not atomic",
        STEP,
        "is_last = atomicInc(launch.ticket, gridDim.x - 1) == gridDim.x - 1;",
        "is_last = *launch.ticket == gridDim.x - 1;\n    *launch.ticket = is_last ? 0 : *launch.ticket + 1;",
        "data race",
        sanitizer="thread",
    ),
    Planted(
        "a ticket that is never taken back",
        STEP,
        "atomicInc(launch.ticket, gridDim.x - 1)",
        "atomicInc(launch.ticket, ~0u)",
        "the ticket was written to",
    ),
    Planted(
        "threads leave ahead of a barrier",
        STEP,
        "const Row& row = launch.rows[chunk.row];",
        "const Row& row = launch.rows[chunk.row];\n    if (threadIdx.x >= row.count) return;",
        "divergent barrier in block (0, 0, 0)",
    ),
]

ZEROING = [
    Planted(
        "more bytes up to a multiple of 16 than there are",
        ZERO,
        "min(int(-reinterpret_cast<uintptr_t>(first) % 16), count)",
        "int(-reinterpret_cast<uintptr_t>(first) % 16)",
        "heap-buffer-overflow",
        sanitizer="address",
    ),
    Planted(
        "16 bytes at a time from the first on",
        ZERO,
        "min(int(-reinterpret_cast<uintptr_t>(first) % 16), count)",
        "0",
        "misaligned address",
        sanitizer="address",
    ),
    Planted(
        "last bytes left out", ZERO, "if (tail + int(threadIdx.x) < count) first[tail + threadIdx.x] = 0;", "",
        "is not zeroed",
    ),
    Planted(
        "chunk of bytes begins in 32 bits",
        ZERO,
        "int64_t(chunk.index) * kZeroChunk",
        "int64_t(chunk.index * kZeroChunk)",
        "signed integer overflow",
        sanitizer="address",
    ),
]  # fmt: skip

NORM, CLIP = "cuda/norm.cu", "core/clip.h"
MEASURING = [
    Planted(
        "lanes folded with their neighbours",
        NORM,
        "for (int width = kSumLanes / 2; width > 0; width /= 2) {\n    __syncthreads();\n"
        "    if (threadIdx.x % kSumLanes < width)",
        "for (int width = 1; width < kSumLanes; width *= 2) {\n    __syncthreads();\n"
        "    if (threadIdx.x % (2 * width) == 0)",
        "the norm is",
    ),
    Planted(
        "a thread adds what lies side by side",
        NORM,
        "*elements[i + k * kSumLanes];",
        "*elements[count == 1 ? i : i / 1024 * 1024 + i % kSumLanes * count + k];",
        "the norm is",
    ),
    Planted("last elements of a lane left out", NORM, "for (; i < count; i += kSumLanes)", "for (; i < 0; ++i)",
            "the norm is"),
    Planted("a gradient left out", NORM, "launch.rows[i].count > 0 ?", "launch.rows[i].count > 1 ?", "the norm is"),
    Planted("the second unit as the first", NORM, "(first + threadIdx.x / kSumLanes) * kSumUnit", "first * kSumUnit",
            "the norm is"),
    Planted("lanes of one unit in those of another", NORM, "lanes.at[k * kSumLanes]", "lanes.at[0]", "the norm is"),
    Planted("an element beyond the end of a unit", NORM, "max(min(row.count - begin, kSumUnit), int64_t(0))",
            "max(min(row.count - begin + 1, kSumUnit), int64_t(0))", "heap-buffer-overflow", sanitizer="address"),
    Planted("a dimension left out", NORM, "d = ndim - 1; d >= 0;", "d = ndim - 1; d > 0;", "the norm is"),
    Planted("divided by a reciprocal", NORM, "widen(x[k]) / grad_scale", "widen(x[k]) * (1 / grad_scale)",
            "grad_scale 3.0"),
    Planted("quotients not stored", NORM, "if (!launch.store) return;", "return;", "norm, grid"),
    Planted("quotients stored unasked", NORM, "if (!launch.store) return;", "", "norm, grid"),
    Planted("units added before they are there", NORM, "__threadfence();\n  const bool is_last", "const bool is_last",
            "data race", sanitizer="thread"),
    Planted("tickets never taken back", NORM, "atomicInc(ticket, unsigned(count - 1))", "atomicInc(ticket, ~0u)",
            "a ticket was written to"),
    Planted("lanes written before all have read them", NORM, "lanes.at[threadIdx.x + width];\n  }\n  __syncthreads();",
            "lanes.at[threadIdx.x + width];\n  }", "data race", sanitizer="thread"),
    Planted("NaN taken for finite", NORM, "norm <= DBL_MAX", "!(norm > DBL_MAX)", "found is"),
    Planted("the verdict of another forgotten", NORM, "before || !is_finite ? 1.0f", "!is_finite ? 1.0f", "found is"),
    Planted("skips counted that are another's", NORM, "&& !before && !is_finite", "&& !is_finite", "skipped is"),
    Planted("a norm of NaN clips nothing", CLIP, "coefficient > 1 ? 1.0 : coefficient",
            "coefficient < 1 ? coefficient : 1.0", "clip"),
    Planted("a limit far above the norm multiplies", CLIP, "coefficient > 1 ? 1.0 : coefficient", "coefficient",
            "should be"),
    Planted("written although nothing is to be clipped", NORM, "if (coefficient == 1) return;", "", "clip, grid"),
    Planted("last elements not clipped", NORM, "i < count; i += kThreads)", "i < packed; i += kThreads)",
            "clip, grid"),
    Planted("no alignment needed to clip", NORM, "is_flat && aligned(first) ?", "is_flat ?", "misaligned address",
            sanitizer="address"),
    Planted("a step that forgets the norm", STEP, "launch.norm != nullptr ? clip_coefficient",
            "false ? clip_coefficient", "on the device"),
]  # fmt: skip

SOURCE_LEVEL = [*BOUNDS, *STRIDED, *ARITHMETIC, *MIXED, *TABLE, *FOUND_INF, *FOLDING, *ORDER, *ZEROING, *MEASURING]

# ---- the host's side of a step, from Python to the launch -----------------------------------------------------------


def _host(name: str, file: str, old: str, new: str, seen: str, tests: str = "device_tests") -> Planted:
    return Planted(name, file, old, new, seen, layer="end to end", tests=tests)


RUN, BUCKETS, TABLES = "cuda/run.cpp", "cuda/buckets.cpp", "cuda/tables.cpp"
END_TO_END = [
    _host("a table that stays when addresses change", TABLES, "same(table.key, key, key_rest)",
          "table.key.size() == key.size + key_rest.size", "test_many_steps_in_the_queue"),
    _host("a table uploaded in each step", TABLES, "same(table.key, key, key_rest)", "false",
          "test_400_tensors_are_one"),
    _host("a table of another stream", TABLES, "table.stream == stream && same", "same", "test_the_current_stream"),
    _host("staging memory used again too early", TABLES, "if (code == cudaSuccess) return staging;",
          "if (code == cudaSuccess || code == cudaErrorNotReady) return staging;", "test_many_steps_in_the_queue"),
    _host("waiting for the device to upload", TABLES, '"recording the upload of a table");',
          '"recording the upload of a table");\n  cudaStreamSynchronize(table.stream);', "test_found_inf"),
    _host("the table of a graph overwritten", TABLES, "return !table.frozen && table.last_used",
          "return table.last_used", "test_a_graph_outlives_later_steps"),
    _host("the table of a graph given back", TABLES, "if (!table.frozen) on_device(table.device",
          "on_device(table.device", "test_a_graph_outlives_its_optimizer"),
    _host("tables that alternate overwritten", TABLES, "table.last_used + kKeptSteps < step_",
          "table.last_used < step_", "test_new_addresses_are_uploaded"),
    _host("tables that only become more", TABLES, "tables_.size() >= kMaxTables", "false",
          "test_streams_that_come_and_go"),
    _host("a failure that stays", RUN, "if (!is_permanent(code)) check(", "if (false) check(",
          "test_a_passing_trouble"),
    _host("an upload that becomes part of a graph", TABLES,
          "capturing ? upload_beside_capture(table, contents_) : upload(table, contents_);",
          "upload(table, contents_);", "test_capture_and_replay"),
    _host("tables not given back", TABLES, "if (!table.frozen) on_device(table.device, [&] { release(table); });", "",
          "test_nothing_is_left_behind"),
    _host("one launch for each tensor", BUCKETS, "return task.device == first->device &&",
          "return false && task.device == first->device &&", "test_400_tensors_are_one"),
    _host("groups that share what they must not", BUCKETS,
          "std::memcmp(task.constants, first.constants, kMaxRuleBytes) == 0", "true", "test_one_launch_per_bucket"),
    _host("kernels of the other arithmetic", RUN, "!task.mixed && task.dtype == DType::f64);",
          "task.dtype != DType::f64);", "test_bits_of_the_host"),
    _host("found_inf not handed on", RUN, "step.found_inf = bucket.run->found_inf;", "", "test_found_inf"),
    _host("found_inf of the first device", RUN, "buckets.push_back({&task, &*run, {}, {}});",
          "buckets.push_back({&task, &runs[0], {}, {}});", "test_two_devices"),
    _host("a launch on the current device", RUN, "const CurrentDevice current(launch.device);", "", "test_two_devices"),
    _host("a launch that fails in silence", RUN, "if (code == cudaSuccess) continue;", "continue;",
          "test_a_failure_writes"),
    _host("an option in the place of another", "python/devices.cpp", "int(option.place - first)", "0",
          "test_learning_rate_on_the_device_and_steps_on_the_host"),
    _host("a first step that is skipped on the device", "python/prepare_state.cpp",
          "if (variant != next_variant) skipped_by_host_ = true;", "", "test_overflow_in_the_first_step_of_momentum"),
    _host("the host's number in place of the device's", "python/group_reader.cpp",
          "if (may_stay && on_device_ != nullptr && is_number_on_cuda(value)) {", "if (false) {",
          "test_learning_rate_on"),
    _host("steps counted before the launch", "python/apply.cpp", "if (!device_tasks_.empty()) driver_.launch();",
          "*reinterpret_cast<float*>(rows_[0].numbers.step.at) += 1;\n"
          "    if (!device_tasks_.empty()) driver_.launch();", "test_a_failure_writes_nothing"),
    _host("a capture whose steps nobody counts", "python/devices.cpp",
          "row.numbers.step.is_on_host() && run->capturing", "false", "test_capture_of_steps_counted_on_the_host"),
]  # fmt: skip

GRADS, HOST_OF_NORM = "python/device_grads.cpp", "cuda/norm.cpp"
NORM_TO_END = [
    _host("groups of other limits in one launch", BUCKETS, "same_limit(task, *first)", "true", "test_limits_of_groups",
          "norm_tests"),
    _host("a limit not handed on", RUN, "step.max_norm = task.max_norm;", "", "test_a_step_that_clips", "norm_tests"),
    _host("the norm not handed on", RUN, "step.norm = task.norm;", "", "test_a_step_that_clips", "norm_tests"),
    _host("a verdict that nobody gives", GRADS, "memory_of<float>(found), memory_of<int64_t>(skipped)",
          "nullptr, memory_of<int64_t>(skipped)", "test_skipping", "norm_tests"),
    _host("quotients that torch's counts do not show", GRADS, "if (store) Torch::get().bump_versions(tensors_);", "",
          "test_unscale", "norm_tests"),
    _host("float64 read as float32", GRADS, " || view.dtype == DType::f64", "", "test_others_are_measured",
          "norm_tests"),
    _host("gradients of two devices", GRADS, "view.device.index != device_ ||", "", "test_others_are_measured",
          "norm_tests"),
    _host("shared memory clipped at once", GRADS, "return ranges.overlap(true);", "return false;",
          "test_gradients_that_share_memory", "norm_tests"),
    _host("the norm of the first gradient", HOST_OF_NORM, "launch.row_count = int32_t(grads.size());",
          "launch.row_count = 1;", "test_a_step_that_clips", "norm_tests"),
    _host("a norm on the default stream", HOST_OF_NORM, "&parameter, 0,\n                                              "
          "static_cast<cudaStream_t>(run.stream));", "&parameter, 0, nullptr);", "test_the_current_stream",
          "norm_tests"),
    _host("a norm in a table that a graph loses", HOST_OF_NORM, "run.capturing, bytes_of(all.rows)",
          "false, bytes_of(all.rows)", "test_a_captured_step", "norm_tests"),
]  # fmt: skip

PLANTED = [*SOURCE_LEVEL, *END_TO_END, *NORM_TO_END]

# ---- what has been noticed ------------------------------------------------------------------------------------------

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
NOTICED = HERE / "noticed.txt"


def fingerprint() -> str:
    """Of the sources in which mistakes are planted, and of the tests that must notice them."""
    files = {path for folder in ("core", "cuda") for path in (CSRC / folder).iterdir()}
    files |= {CSRC / planted.file for planted in PLANTED}
    files |= {path for path in HERE.iterdir() if path.suffix in (".py", ".h", ".cpp")}
    files -= {path for path in HERE.glob("test_*.py") if path.stem != "test_planted"}  # those take no part in it
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def are_noticed() -> bool:
    """Whether each mistake was planted in these very sources, and noticed."""
    return NOTICED.exists() and NOTICED.read_text().split()[-1] == fingerprint()


if __name__ == "__main__":
    NOTICED.write_text(
        f"{len(PLANTED)} mistakes noticed, planted in the sources with the fingerprint\n{fingerprint()}\n"
    )
