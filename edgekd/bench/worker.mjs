/**
 * Measure one ONNX model in this process, with onnxruntime-web's `wasm` backend; worker.py is its Python counterpart.
 *
 *     node worker.mjs --modules DIR --plan plan.json --model model.onnx --out result.json
 *
 * It needs Node.js 18.3 and DIR/node_modules/onnxruntime-web (1.24 or newer), and it does not use edgekd. Plan
 * and result have the format of worker.py, which explains them. These are the differences:
 *
 *     provider               is "wasm"; inside it runs ONNX Runtime's CPU provider compiled to WebAssembly, so the
 *                            kernels of a profile are reported as "wasm" too
 *     intra_op_threads       becomes env.wasm.numThreads
 *     provider_options, inter_op_threads, allow_spinning, arena, affinity, precise_int8
 *                            have no effect here; the fingerprint contains them as given
 *     binding, sessions      values other than "run" and 1 are refused
 *     memory_limit_bytes     is ignored: Node cannot set RLIMIT_AS, and V8 reserves far more than it uses. A wasm
 *                            memory ends at 4 GB anyway
 *     optimized              is ignored: onnxruntime-web cannot write files
 *     model                  is one file; external data is not read
 *     custom_ops             are refused
 *     batch_axes             several examples of one input can only be along its first axis
 *     inputs                 in a .npz file are stored without compression, and hold numbers, no texts
 *     values                 are numbers, true, false, or flat lists of them
 *     load_s                 is the time of the model only: the runtime has been compiled and started before
 *     warmup_s               may be longer than in the plan (unless it is 0), see warmUp; a pair warms up each model
 *     disturbance            covers only the timed calls: before them V8's own threads compete with this one
 *     energy_j               is null
 */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

const SCHEMA_VERSION = 4; // the history is in worker.py

const DEFAULTS = {
  mode: 'latency',
  provider: 'wasm',
  provider_options: {},
  intra_op_threads: 1,
  inter_op_threads: 1,
  allow_spinning: true,
  graph_level: 'all',
  arena: true,
  affinity: [],
  precise_int8: false,
  binding: 'run',
  baseline: null,
  baseline_first: true,
  block_s: 0.005,
  inputs: null,
  packed: false,
  outputs: null,
  optimized: null,
  shapes: {},
  values: {},
  batch_axes: {},
  output: null,
  answers: 'rows',
  custom_ops: [],
  steered: false,
  sequence_length: null,
  padding: null,
  memory_limit_bytes: null,
  batch_size: 1,
  sessions: 1,
  warmup_s: 0.5,
  min_calls: 100,
  max_calls: 1_000,
  max_s: 1.0,
};
const SESSION_KEYS = [
  'provider', 'provider_options', 'intra_op_threads', 'inter_op_threads', 'allow_spinning', 'graph_level', 'arena',
  'affinity', 'precise_int8', 'binding',
];
const LEVELS = { disable: 'disabled', basic: 'basic', extended: 'extended', all: 'all' };
const CHOICES = {
  mode: ['latency', 'pair', 'throughput', 'memory', 'profile', 'predict', 'load'],
  binding: ['run', 'io'],
  answers: ['rows', 'classes', 'boxes'],
  graph_level: Object.keys(LEVELS),
};
// The .npy code of each type, with its name in numpy and onnxruntime-web, and the class of its array
const DTYPES = {
  u1: ['uint8', Uint8Array],
  i1: ['int8', Int8Array],
  f4: ['float32', Float32Array],
  f2: ['float16', Uint16Array], // raw bits; onnxruntime-web accepts them even if Node has no Float16Array
  f8: ['float64', Float64Array],
  i2: ['int16', Int16Array],
  i4: ['int32', Int32Array],
  i8: ['int64', BigInt64Array],
  b1: ['bool', Uint8Array],
};
const SHORTEST_S = 50e-6; // shorter calls are timed in inner loops, because the clock has an overhead
const LOADS = 5; // pair: number of timed loads of each model
const SLOW_LOAD_S = 0.5;
const LOWEST = Math.fround(0.01); // boxes: these four are those of worker.py
const OVERLAP = 0.6;
const FIRST = 1000;
const KEPT = 100;
const ROTATED = 64; // rows that are prepared for the timed calls (at least two batches)
const COMPILING_S = 3.0; // longest warm-up while V8 compiles the code
const TICKS_PER_S = 100; // unit of /proc/stat: Linux' USER_HZ, which Node cannot query
const LONGEST = 600; // length of an error message
const clock = () => performance.now() / 1000;

/** One line for the result's `error`. */
class WorkerError extends Error {}

async function main() {
  let given;
  try {
    const option = { type: 'string' };
    given = parseArgs({ options: { modules: option, plan: option, model: option, out: option } }).values;
    for (const name of ['modules', 'plan', 'model', 'out']) {
      if (given[name] === undefined) throw new Error(`--${name} is missing`);
    }
  } catch (error) {
    console.error(`worker.mjs: ${error.message}`);
    return 2;
  }
  let [result, code] = [null, 0];
  try {
    result = await measure(JSON.parse(fs.readFileSync(given.plan, 'utf8')), given.model, given.modules);
  } catch (error) {
    const text = error instanceof WorkerError ? error.message : explain(error).message;
    [result, code] = [{ schema_version: SCHEMA_VERSION, error: text }, 1];
  }
  fs.writeFileSync(`${given.out}.part`, JSON.stringify(result));
  fs.renameSync(`${given.out}.part`, given.out);
  return code;
}

/** The result of a plan for one model file, with the onnxruntime-web under the folder `modules`. */
async function measure(asked, model, modules) {
  const plan = complete(asked);
  volunteerToDie();
  const ort = await start(modules, plan);
  const memory = { import_bytes: peakMemory() };
  const digest = digestOf(model);
  const paired = plan.mode === 'pair';
  const [[session, loadS], baseline] = paired ? await loadPair(ort, plan, model) : [await loaded(ort, plan, model)];
  memory.load_bytes = peakMemory();
  if (plan.mode === 'load') {
    const mark = fingerprint(ort, plan, digest, null);
    return { schema_version: SCHEMA_VERSION, mode: 'load', load_s: loadS, memory, fingerprint: mark };
  }
  const feeds = new Feeds(ort, session, plan);
  const result = { schema_version: SCHEMA_VERSION, mode: plan.mode, load_s: loadS, batch_size: feeds.batch };
  const call = caller(session, feeds);
  const before = counters();
  if (plan.mode === 'predict') result.outputs_shape = await predict(session, feeds, plan);
  else if (plan.mode === 'profile') Object.assign(result, await profile(ort, call, feeds, plan, model));
  else if (plan.mode === 'throughput') Object.assign(result, await throughput(call, plan));
  else if (paired) Object.assign(result, await pair(ort, [call, feeds.batch, feeds], baseline, plan));
  else Object.assign(result, await timeCalls(call, plan));
  memory.run_bytes = peakMemory();
  result.memory = memory;
  result.disturbance ??= disturbance(before, counters());
  if (['latency', 'pair', 'memory'].includes(plan.mode)) await checkOutputs(session, feeds);
  result.fingerprint = fingerprint(ort, plan, digest, feeds);
  return result;
}

/** Throw for outputs that are NaN or infinite; this makes one call that is not timed. */
async function checkOutputs(session, feeds) {
  let outputs;
  try {
    outputs = await session.run(feeds.ready[0]);
  } catch (error) {
    if (/on index \d+\..*non-tensor/.test(error.message)) return; // sequences and maps cannot be read here
    throw explain(error, 'the model fails when it runs');
  }
  for (const [name, { type, data }] of Object.entries(outputs)) {
    if (type.startsWith('float') && !data.every((_, at) => Number.isFinite(floatAt(type, data, at)))) {
      const drawn = feeds.random ? ' for seeded random inputs; give it real ones, by --data or --input' : '';
      throw new WorkerError(`gives NaN or infinite outputs (${name})${drawn}`);
    }
  }
}

const floatAt = (type, data, at) =>
  type === 'float16' && data instanceof Uint16Array ? halfAsFloat(data[at]) : Number(data[at]);

/** Create a session and measure the seconds that this takes. */
async function loaded(ort, plan, model) {
  const begin = clock();
  const session = await makeSession(ort, plan, model);
  return [session, clock() - begin];
}

/**
 * Return the sessions of the model and its baseline, each with the median seconds of LOADS loads, or of one slow load.
 *
 * Loads are timed one at a time and by turns; worker.py explains why. Here sessions must be released explicitly.
 */
async function loadPair(ort, plan, model) {
  const [files, names] = [[model, plan.baseline], ['', blame(plan)]];
  const order = plan.baseline_first ? [1, 0] : [0, 1];
  const load = (place) => blaming(names[place], () => loaded(ort, plan, files[place]));
  const timedLoad = async (place) => {
    const [session, seconds] = await load(place);
    await session.release();
    return seconds;
  };
  await timedLoad(order[0]);
  const spent = [[], []];
  const total = () => spent.flat().reduce((a, b) => a + b, 0);
  while (spent[0].length < LOADS && total() < SLOW_LOAD_S) {
    const turns = spent[0].length % 2 === 0 ? order : [...order].reverse();
    for (const place of turns) spent[place].push(await timedLoad(place));
  }
  const sessions = [null, null];
  for (const place of order) [sessions[place]] = await load(place);
  return sessions.map((session, place) => [session, median(spent[place])]);
}

/** Return the prefix of error messages about the baseline. */
const blame = (plan) => `baseline ${plan.baseline}: `;

/** Return the result of `action`, and prepend `name` to its errors; it is empty for the model itself. */
async function blaming(name, action) {
  try {
    return await action();
  } catch (error) {
    throw new WorkerError(name + (error instanceof WorkerError ? error : explain(error)).message);
  }
}

/** Return the plan with all keys; throw WorkerError if a key or value is wrong or not supported here. */
function complete(plan) {
  const kind = (value) => (Array.isArray(value) ? 'list' : value === null ? 'null' : typeof value);
  if (kind(plan) !== 'object') throw new WorkerError('the plan should be a JSON object');
  const unknown = Object.keys(plan).filter((key) => !Object.hasOwn(DEFAULTS, key)).sort();
  if (unknown.length) {
    const known = Object.keys(DEFAULTS).join(', ');
    throw new WorkerError(`the plan has unknown keys: ${unknown.join(', ')}; known: ${known}`);
  }
  for (const [key, value] of Object.entries(plan)) {
    const got = `the plan's ${key} is ${JSON.stringify(value)}`;
    if (DEFAULTS[key] !== null && kind(value) !== kind(DEFAULTS[key])) {
      throw new WorkerError(`${got}; it should be like ${JSON.stringify(DEFAULTS[key])}`);
    }
    if (CHOICES[key] && !CHOICES[key].includes(value)) {
      throw new WorkerError(`${got}; known: ${CHOICES[key].join(', ')}`);
    }
  }
  const whole = { ...DEFAULTS, ...plan };
  if (whole.mode === 'pair' && !(whole.baseline && typeof whole.baseline === 'string')) {
    throw new WorkerError('mode pair needs `baseline`');
  }
  if (whole.provider !== 'wasm') {
    throw new WorkerError(`this onnxruntime offers wasm; ${whole.provider} is not among them`);
  }
  if (whole.custom_ops.length) throw new WorkerError('onnxruntime-web loads no libraries; leave --custom-ops out');
  if (whole.binding !== 'run') throw new WorkerError('onnxruntime-web cannot bind inputs and outputs: binding "io"');
  if (whole.sessions !== 1) throw new WorkerError('JavaScript calls from one thread: sessions can only be 1');
  return whole;
}

/** Make the system kill this process before others when memory runs out. */
function volunteerToDie() {
  try {
    fs.writeFileSync('/proc/self/oom_score_adj', '1000');
  } catch {
    // this file exists only on Linux
  }
}

/** Start onnxruntime-web, which compiles its wasm file, so that the load time of the model excludes this. */
async function start(modules, plan) {
  let ort;
  try {
    ort = createRequire(path.resolve(modules, 'package.json'))('onnxruntime-web');
  } catch (error) {
    throw new WorkerError(`no onnxruntime-web in ${modules}: ${oneLine(error)}`);
  }
  ort.env.wasm.numThreads = plan.intra_op_threads;
  ort.env.logLevel = 'error';
  try {
    await ort.InferenceSession.create(new Uint8Array(0), { executionProviders: ['wasm'], logSeverityLevel: 4 });
  } catch (error) {
    // An empty file is not a model; the runtime would report this only after it has started.
    if (!String(error).includes("Can't create a session")) throw explain(error, 'onnxruntime-web does not start');
  }
  return ort;
}

async function makeSession(ort, plan, model, options = {}) {
  try {
    return await ort.InferenceSession.create(fs.readFileSync(model), {
      executionProviders: ['wasm'],
      graphOptimizationLevel: LEVELS[plan.graph_level],
      logSeverityLevel: 3, // errors only
      ...options,
    });
  } catch (error) {
    throw explain(error, 'onnxruntime cannot load it');
  }
}

function oneLine(error) {
  const text = String(error?.message ?? error).replace(/\x1b\[[0-9;?]*[ -/]*[@-~]/g, '');
  return withoutSignature(text.split(/\s+/).join(' ').trim(), LONGEST);
}

/** Remove the location in onnxruntime's source and the C++ signature from a message, as in worker.py. */
function withoutSignature(whole, limit = 300) {
  const place = /\/\S+\.(?:cc|cpp|h|hpp):\d+ /.exec(whole);
  let text = whole;
  if (place) {
    const end = endOfSignature(whole, place.index + place[0].length);
    text = `${whole.slice(0, place.index).replace(/[ :]+$/, '')}: ${whole.slice(end).trimStart()}`;
  }
  return text.length <= limit ? text : `${text.slice(0, limit / 2)} … ${text.slice(-limit / 2)}`;
}

/** Return the position after the parentheses of the signature at `begin`; `begin` if there are no balanced ones. */
function endOfSignature(text, begin) {
  let depth = 0;
  for (let place = Math.max(text.indexOf('(', begin), begin); place < text.length; place += 1) {
    depth += { '(': 1, ')': -1 }[text[place]] ?? 0;
    if (depth === 0) return text[place] === ')' ? place + 1 : begin;
  }
  return begin;
}

// SafeInt reports a size beyond 32 bits, the limit of wasm.
const MEMORY = /bad_alloc|out of memory|\bOOM\b|Aborted|Failed to allocate|[Aa]llocation failed|Memory\.grow|SafeInt|Integer overflow/;

/** Convert an error to one line; an uncaught C++ exception is only a number. */
function explain(error, what = '') {
  const text = typeof error === 'number' ? `a C++ exception (${error})` : oneLine(error);
  const whole = what ? `${what}: ${text}` : text;
  const memory = MEMORY.test(text) || (error instanceof RangeError && !text.includes('call stack'));
  return new WorkerError(memory ? `out of memory (${whole})` : whole);
}

/** Rows of a .npy file (C order), which are read when they are needed. */
class Rows {
  /** Read the header of the .npy file, or of the one that begins at byte `at` of `file`. */
  constructor(file, at = 0) {
    this.name = file;
    this.file = fs.openSync(file, 'r');
    const start = this.bytes(at, 12);
    if (start.toString('latin1', 0, 6) !== '\x93NUMPY') throw new WorkerError(`${file}: not a .npy file`);
    const [skip, size] = start[6] === 1 ? [10, start.readUInt16LE(8)] : [12, start.readUInt32LE(8)];
    const from = at + skip;
    const header = this.bytes(from, size).toString('latin1');
    const descr = /'descr':\s*'([<>|=]?)(\w+)'/.exec(header);
    const shape = /'shape':\s*\(([^)]*)\)/.exec(header);
    if (!descr || !shape || !(descr[2] in DTYPES) || descr[1] === '>' || /'fortran_order':\s*True/.test(header)) {
      throw new WorkerError(`${file}: cannot be read here (needs C order, little endian): ${header.trim()}`);
    }
    [this.dtype, this.Array] = DTYPES[descr[2]];
    this.shape = shape[1].split(',').filter((size) => size.trim()).map(Number);
    this.begin = from + size;
    this.length = this.shape[0] ?? 0;
    this.width = product(this.shape.slice(1));
  }

  /** Return all values. */
  all() {
    return new this.Array(this.bytes(this.begin, product(this.shape) * this.Array.BYTES_PER_ELEMENT).buffer);
  }

  /** Return the shape of `count` rows from row `start` on. */
  dims(start, count) {
    return [count, ...this.shape.slice(1)];
  }

  bytes(position, size) {
    const buffer = Buffer.from(new ArrayBuffer(size));
    for (let done = 0; done < size; ) {
      const got = fs.readSync(this.file, buffer, done, size - done, position + done);
      if (!got) throw new WorkerError(`${this.name}: ends early`);
      done += got;
    }
    return buffer;
  }

  /** Return `count` rows from row `start` on; after the last row it starts again. */
  take(start, count) {
    const taken = new this.Array(count * this.width);
    for (let done = 0; done < count; ) {
      const row = (start + done) % this.length;
      const some = Math.min(count - done, this.length - row);
      const stride = this.width * this.Array.BYTES_PER_ELEMENT;
      const buffer = this.bytes(this.begin + row * stride, some * stride).buffer;
      taken.set(new this.Array(buffer), done * this.width);
      done += some;
    }
    return taken;
  }
}

/** Examples of different shapes from a plan's `packed` file, which worker.py describes. */
class Packed {
  constructor(file) {
    this.bytes = new Rows(file);
    const number = (place) => Number(this.bytes.bytes(this.bytes.begin + 8 * place, 8).readBigInt64LE());
    const [count, axes] = [number(0), number(1)];
    const head = this.bytes.bytes(this.bytes.begin + 16, 8 * count * axes);
    const sizes = [...Array(count * axes).keys()].map((k) => Number(head.readBigInt64LE(8 * k)));
    this.shapes = [...Array(count).keys()].map((k) => sizes.slice(k * axes, (k + 1) * axes));
    this.begins = [this.bytes.begin + 16 + head.length];
    for (const shape of this.shapes) this.begins.push(this.begins.at(-1) + product(shape));
    const alike = (axis) => (this.shapes.every((shape) => shape[axis] === this.shapes[0][axis]) ? sizes[axis] : null);
    [this.dtype, this.length, this.shape] = ['uint8', count, [count, ...[...Array(axes).keys()].map(alike)]];
  }

  take(start) {
    const [begin, end] = [this.begins[start], this.begins[start + 1]];
    return new Uint8Array(this.bytes.bytes(begin, end - begin).buffer);
  }

  dims(start) {
    return [1, ...this.shapes[start]];
  }
}

/**
 * Return the arrays of a .npz file by name. np.savez stores them without compression, so that each is a .npy file
 * inside the file; https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT describes the directory at the end.
 */
function arraysIn(file) {
  const [descriptor, { size }] = [fs.openSync(file, 'r'), fs.statSync(file)];
  const read = (position, count) => {
    const buffer = Buffer.alloc(count);
    fs.readSync(descriptor, buffer, 0, count, position);
    return buffer;
  };
  const from = Math.max(0, size - 65_557);
  const tail = read(from, size - from);
  const end = tail.lastIndexOf('PK\x05\x06', undefined, 'latin1');
  if (end < 0) throw new WorkerError(`${file}: not a .npz file`);
  const directory = read(tail.readUInt32LE(end + 16), tail.readUInt32LE(end + 12));
  const arrays = {};
  for (let at = 0; at < directory.length; ) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => directory.readUInt16LE(at + offset));
    const entry = directory.toString('utf8', at + 46, at + 46 + name);
    if (directory.readUInt16LE(at + 10)) throw new WorkerError(`${file}: ${entry} is compressed; np.savez stores it as it is`);
    const begin = directory.readUInt32LE(at + 42);
    const local = read(begin, 30);
    arrays[entry.replace(/\.npy$/, '')] = new Rows(file, begin + 30 + local.readUInt16LE(26) + local.readUInt16LE(28));
    at += 46 + name + extra + comment;
  }
  return arrays;
}

/** The inputs for the calls: rows of the plan's file in turn, constants, or seeded random arrays. */
class Feeds {
  constructor(ort, session, plan) {
    [this.ort, this.plan] = [ort, plan];
    const outputs = session.outputMetadata.map(withFreeSizes);
    this.inputs = session.inputMetadata.map(withFreeSizes);
    this.output = plan.output ?? session.outputNames[0];
    if (!session.outputNames.includes(this.output)) {
      throw new WorkerError(`it has no output '${plan.output}'; its outputs are ${session.outputNames.join(', ')}`);
    }
    [this.length, this.padding] = [plan.sequence_length, plan.padding];
    if (!this.inputs.length) throw new WorkerError('the model has no inputs');
    this.nameKnown(plan);
    this.axes = {};
    for (const input of this.inputs) {
      const axis = axisOf(input, this.inputs, outputs, plan.batch_axes);
      if (axis !== null) this.axes[input.name] = axis;
    }
    const batched = this.inputs.filter(({ name }) => name in this.axes);
    const size = batched.length ? batched[0].shape[this.axes[batched[0].name]] : null;
    this.fixed = isSize(size); // a fixed batch comes from the model
    this.batch = batched.length ? (this.fixed ? size : this.batchSize(batched)) : 1;
    [this.random, this.count, this.rows, this.same, this.ones] = [false, 0, {}, {}, []];
    for (const input of this.inputs.filter(({ name }) => name in plan.values)) {
      this.same[input.name] = constant(ort, input, plan.values[input.name], this.sizes(input, plan));
    }
    if (plan.inputs === null) this.draw();
    else this.takeData();
  }

  /** Return the number of inputs per call: from a given shape, or else the plan's batch size. */
  batchSize(batched) {
    const given = batched.map(({ name }) => this.plan.shapes[name]?.[this.axes[name]]).find((size) => size !== undefined);
    return given === undefined || ['throughput', 'predict'].includes(this.plan.mode) ? this.plan.batch_size : given;
  }

  /** Make random inputs for all inputs that have no value. */
  draw() {
    const drawn = this.inputs.filter(({ name }) => !(name in this.same));
    this.random = drawn.length > 0;
    const random = generator(1);
    const shapes = Object.fromEntries(drawn.map((input) => [input.name, this.sizes(input, this.plan)]));
    const of = (input) => this.same[input.name] ?? randomInput(this.ort, input, shapes[input.name], random);
    const one = () => Object.fromEntries(this.inputs.map((input) => [input.name, of(input)]));
    this.ready = Array.from({ length: drawn.length ? 8 : 1 }, one);
  }

  /** Read the plan's file, and prepare the inputs of the timed calls from it. */
  takeData() {
    const { plan } = this;
    if (String(plan.inputs).endsWith('.npz')) this.sortAll(arraysIn(plan.inputs));
    else this.takeRows(plan.packed ? new Packed(plan.inputs) : new Rows(plan.inputs));
    const counts = [...Object.entries(this.rows).map(([name, { length }]) => [name, length]), ...this.ones];
    if (new Set(counts.map(([, count]) => count)).size > 1 || counts.some(([, count]) => !count)) {
      const told = counts.map((pair) => pair.join(' ')).join(', ');
      throw new WorkerError(`the data should have equally many examples for all inputs, at least one; got ${told}`);
    }
    this.count = counts.length ? counts[0][1] : 1;
    if (Object.keys(this.rows).some((name) => !(name in this.axes))) this.batch = 1;
    if (plan.mode === 'predict') return;
    const timed = this.timedRows();
    const count = Math.min(Math.max(2, Math.floor(ROTATED / this.batch)), Math.ceil(timed.length / this.batch));
    this.ready = [...Array(count).keys()].map((number) => this.feed(number * this.batch, this.batch, timed));
  }

  /** Take the rows of a .npy file for the only input without a value. */
  takeRows(rows) {
    if (!rows.length) throw new WorkerError(`${this.plan.inputs}: has no rows`);
    const open = this.inputs.filter(({ name }) => !(name in this.same));
    if (open.length !== 1 || !this.suits(open[0], rows)) {
      const takes = this.inputs.map((input) => `${typeName(input)} ${listed(input.shape ?? [])}`).join(', ');
      throw new WorkerError(`the model takes ${takes}; the data is ${rows.dtype} ${listed(rows.shape)}`);
    }
    this.rows[open[0].name] = rows;
  }

  /** Take one array for each input: rows, one for each example, or what is the same for all calls. */
  sortAll(arrays) {
    const names = this.inputs.map(({ name }) => name);
    for (const name of Object.keys(arrays)) {
      if (!names.includes(name)) throw new WorkerError(`the data hold an array '${name}'; its inputs are ${names.join(', ')}`);
    }
    for (const input of this.inputs.filter(({ name }) => !(name in this.same))) {
      const rows = arrays[input.name];
      if (!rows) throw new WorkerError(`the data hold no array for input '${input.name}'; add it, or give it by --input`);
      if (rows.dtype !== input.type) {
        throw new WorkerError(`input ${input.name} is ${typeName(input).slice(7, -1)}; the data's is ${rows.dtype}`);
      }
      this.sort(input, rows);
    }
  }

  sort(input, rows) {
    const declared = input.shape ?? [];
    const axis = this.axes[input.name] ?? null;
    const [rank, given] = [declared.length, rows.shape.length];
    const single = axis !== null && given === rank - 1;
    const example = axis === null && given === rank + 1;
    const shape = single ? [...rows.shape.slice(0, axis), 1, ...rows.shape.slice(axis)] : example ? rows.shape.slice(1) : rows.shape;
    const fits = shape.length === rank && declared.every((size, k) => k === axis || !isSize(size) || size === shape[k]);
    if (!fits) {
      throw new WorkerError(`input ${input.name} takes ${declaredAs(declared)}; what is given for it is ${declaredAs(shape)}`);
    }
    if (axis && shape[axis] !== 1) {
      const what = `${shape[axis]} examples of input ${input.name} are along axis ${axis}`;
      throw new WorkerError(`${what}; here they can only be along the first axis, give one for all calls`);
    }
    if (axis && !single) this.ones.push([input.name, 1]); // an example that counts, as the rows do
    if (example || (axis === 0 && !single)) this.rows[input.name] = rows;
    else this.same[input.name] = new this.ort.Tensor(input.type, rows.all(), shape);
  }

  /** Throw if the plan names an input that the model does not have. */
  nameKnown({ shapes, values, batch_axes }) {
    const names = this.inputs.map((input) => input.name);
    for (const name of [...Object.keys(shapes), ...Object.keys(values), ...Object.keys(batch_axes)]) {
      if (name && !names.includes(name)) throw new WorkerError(`it has no input '${name}'; its inputs are ${names.join(', ')}`);
    }
  }

  /** Return the shape to feed: declared, given, or of the sequences' length; throw if a size is unknown. */
  sizes(input, plan) {
    const declared = input.shape ?? [];
    const given = plan.shapes[input.name];
    const what = `input ${input.name} takes ${declaredAs(declared)}`;
    if (given && (given.length !== declared.length || declared.some((d, k) => isSize(d) && d !== given[k]))) {
      throw new WorkerError(`${what}; the shape given is ${declaredAs(given)}`);
    }
    const bound = {};
    for (const { name, shape } of this.inputs) {
      (plan.shapes[name] ?? []).forEach((size, axis) => (bound[shape?.[axis]] = size));
    }
    const free = [];
    const sizes = declared.map((size, axis) => {
      if (isSize(size)) return size;
      if (this.axes[input.name] === axis) return this.batch;
      const known = given?.[axis] ?? (size ? bound[size] : undefined) ?? this.length;
      if (known === null || known === undefined) free.push(size ? `${axis} (${size})` : `${axis}`);
      return known;
    });
    if (free.length) {
      const which = free.length === 1 ? `the size of axis ${free[0]} is` : `the sizes of axes ${free.join(', ')} are`;
      const words = declared.map((size, axis) => (isSize(size) ? size : this.axes[input.name] === axis ? 1 : size || 'SIZE'));
      const kind = `input ${input.name} is ${typeName(input).slice(7, -1)} ${declaredAs(declared)}`;
      const how = `give its shape, as --shape ${input.name}=${words.join(',').toUpperCase()}, or real inputs, by --data`;
      throw new WorkerError(`${kind}, and ${which} free; ${how}`);
    }
    return sizes;
  }

  /** Return the only array of rows if its rows are sequences that are padded at their ends; else null. */
  get padded() {
    const all = Object.values(this.rows);
    return this.padding !== null && all.length === 1 && all[0].shape.length === 2 ? all[0] : null;
  }

  /** Return the indices of the rows to time: all, or the sequences whose length is nearest to the plan's. */
  timedRows() {
    const places = [...Array(this.count).keys()];
    const rows = this.padded;
    if (this.length === null || !rows) return places;
    const lengths = places.map((place) => this.used(rows.take(place, 1), rows.width));
    const away = (length) => Math.abs(length - this.length);
    this.length = lengths.reduce((best, length) => (away(length) < away(best) ? length : best));
    return places.filter((place) => lengths[place] === this.length);
  }

  /** Return the columns of the rows up to the last one that is not all padding; at least one column. */
  used(values, width) {
    let used = 1;
    values.forEach((value, at) => (used = Number(value) === this.padding ? used : Math.max(used, (at % width) + 1)));
    return used;
  }

  /** Whether the rows are inputs stacked along the first axis. */
  suits(input, rows) {
    if (this.axes[input.name]) return false;
    const [wanted, have] = [(input.shape ?? []).slice(input.name in this.axes ? 1 : 0), rows.shape.slice(1)];
    const alike = wanted.length === have.length && wanted.every((size, axis) => !known(size) || size === have[axis]);
    return alike && input.type === rows.dtype;
  }

  /** Return the inputs of one call, from row `start` on among all rows or those at `places`; after the last one it starts again. */
  feed(start, count, places = null) {
    const feed = {};
    for (const { name, shape } of this.inputs) {
      const rows = this.rows[name];
      if (rows) feed[name] = this.taken(name, rows, start, count, places);
      else feed[name] = this.repeated(this.same[name], count, this.axes[name], shape);
    }
    return feed;
  }

  taken(name, rows, start, count, places) {
    let dims = rows.dims(places ? places[start % places.length] : start, count);
    let values = rows.take(places ? places[start % places.length] : start, count);
    if (places && count > 1) {
      const each = [...Array(count).keys()].map((k) => rows.take(places[(start + k) % places.length], 1));
      each.forEach((row, k) => values.set(row, k * rows.width));
    }
    if (rows === this.padded) {
      const used = this.used(values, rows.width);
      values = values.filter((_, at) => at % rows.width < used);
      dims = [count, used];
    }
    return new this.ort.Tensor(rows.dtype, values, name in this.axes ? dims : dims.slice(1));
  }

  /** Return a tensor of one example, repeated along its batch axis if that is free. */
  repeated(tensor, count, axis, declared) {
    if (axis === undefined || isSize(declared[axis]) || tensor.dims[axis] !== 1 || count === 1) return tensor;
    const inner = product(tensor.dims.slice(axis + 1));
    const data = new tensor.data.constructor(count * tensor.data.length);
    for (let from = 0; from < tensor.data.length; from += inner) {
      const part = tensor.data.subarray(from, from + inner);
      for (let k = 0; k < count; k++) data.set(part, from * count + k * inner);
    }
    return new this.ort.Tensor(tensor.type, data, tensor.dims.map((size, k) => (k === axis ? count : size)));
  }
}

// The rules by which worker.py finds the batch axis; see `batch_axis` there.
const BATCH_NAMES = ['n', 'b', 'bs', 'batchsize', 'num_batches'];
const OTHER_NAMES = ['seq', 'len', 'time', 'height', 'width', 'token', 'frame', 'point', 'sample', 'word'];
const meansBatch = (size) =>
  typeof size === 'string' && (BATCH_NAMES.includes(size.toLowerCase()) || size.toLowerCase().startsWith('batch'));
const nameless = (size) => !isSize(size) && (typeof size !== 'string' || /^(unk__\d+|unk|\?|None|)$/.test(size));

/** Return the batch axis of an input, or null: the plan's, or the one derived from the names of dimensions. */
function axisOf(input, inputs, outputs, said) {
  const shape = input.shape ?? [];
  if (input.name in said || '' in said) {
    const axis = input.name in said ? said[input.name] : said[''];
    if (axis !== null && !(axis < shape.length)) {
      throw new WorkerError(`axis ${axis} of ${input.name} cannot be its batch; it has the axes ${declaredAs(shape)}`);
    }
    return axis;
  }
  if (!shape.length) return null;
  const [first, ...others] = shape;
  const firstsOf = (specs) => specs.map((spec) => spec.shape ?? []).filter((other) => other.length).map((other) => other[0]);
  if (meansBatch(first)) return 0;
  const elsewhere = others.findIndex((size) => String(size).toLowerCase().startsWith('batch'));
  if (elsewhere >= 0) return elsewhere + 1;
  if (isSize(first)) {
    const taken = firstsOf(outputs);
    return shape.length > 1 && (first === 1 || taken.includes(first) || !taken.length) ? 0 : null;
  }
  const firsts = firstsOf([...inputs, ...outputs]);
  if (nameless(first)) return firsts.every(nameless) ? 0 : null;
  const other = OTHER_NAMES.some((word) => first.toLowerCase().includes(word)) || first.length === 1;
  return !other && firsts.every((size) => size === first) ? 0 : null;
}

const UNNAMED = 2 ** 32 - 1; // what onnxruntime-web tells for a dynamic size without a name, the 32 bits of -1
const withFreeSizes = (spec) => ({ ...spec, shape: spec.shape?.map((size) => (size === UNNAMED ? null : size)) });
const isSize = (size) => Number.isInteger(size) && size >= 0;
const declaredAs = (shape) => `[${shape.map((size) => (isSize(size) ? size : size || '?')).join(',')}]`;
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const known = (size) => Number.isInteger(size) && size > 0; // a dynamic size has a name or nothing

/** Write a list as Python does, so that both workers have the same error messages. */
const listed = (shape) => `[${shape.map((size) => (typeof size === 'string' ? `'${size}'` : size)).join(', ')}]`;

function typeName(input) {
  return `tensor(${{ float32: 'float', float64: 'double' }[input.type] ?? input.type ?? 'none'})`;
}

/** Generate random numbers in [0, 1) from a seed (mulberry32), because Math.random takes no seed. */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return a tensor of the input's type with a value that is used for all calls. */
function constant(ort, input, value, shape) {
  const dtype = Object.values(DTYPES).find(([name]) => name === input.type);
  const list = Array.isArray(value) ? value : Array(product(shape)).fill(value);
  const fits = dtype && list.length === product(shape) && list.every((one) => ['number', 'boolean'].includes(typeof one));
  if (!fits || input.type === 'float16') {
    const got = JSON.stringify(value).slice(0, 100);
    throw new WorkerError(`input ${input.name} is ${typeName(input)} ${declaredAs(shape)}; it cannot be ${got} here`);
  }
  const as = { int64: BigInt, uint64: BigInt }[input.type] ?? Number;
  return new ort.Tensor(input.type, dtype[1].from(list, (one) => as(Number(one))), shape);
}

/** Return a random tensor of the input's type. */
function randomInput(ort, input, shape, random) {
  const dtype = Object.values(DTYPES).find(([name]) => name === input.type);
  if (!dtype) throw new WorkerError(`input ${input.name} is ${typeName(input)}; give real inputs for it`);
  const below = (high) => Math.floor(random() * high);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const values = {
    float32: normal,
    float64: normal,
    float16: () => (below(2) << 15) | ((12 + below(4)) << 10) | below(1024), // the bits of ±0.125 to ±2
    uint8: () => below(256),
    int8: () => below(128),
    int64: () => BigInt(below(2)),
  };
  const data = dtype[1].from({ length: product(shape) }, values[input.type] ?? (() => below(2))); // often indices
  return new ort.Tensor(input.type, data, shape);
}

/** Return a function that calls the model with the prepared inputs of a given number. */
function caller(session, { ready, output }) {
  return async (number) => {
    try {
      return (await session.run(ready[number % ready.length]))[output];
    } catch (error) {
      throw explain(error, 'the model fails when it runs');
    }
  };
}

async function timed(call, number) {
  const begin = clock();
  await call(number);
  return clock() - begin;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const rounded = (seconds) => Number(seconds.toFixed(9));

/** Time the first call, warm up until stable (bounded), then time each call; short calls in inner loops. */
async function timeCalls(call, plan) {
  const first = await timed(call, 0);
  const [warmup, warm] = await warmUp(call, plan);
  const typical = warmup.length ? median(warmup.slice(-10)) : first;
  const inner = typical > 0 && typical < SHORTEST_S ? Math.ceil(SHORTEST_S / typical) : 1;
  const latency = [];
  const before = counters();
  const begin = clock();
  while (latency.length < plan.max_calls) {
    if (latency.length >= plan.min_calls && clock() - begin >= plan.max_s) break;
    const number = latency.length * inner;
    const start = clock();
    for (let offset = 0; offset < inner; offset++) await call(plan.steered ? latency.length : number + offset);
    latency.push((clock() - start) / inner);
  }
  return {
    first_call_s: first,
    warmup_s: warmup.map(rounded),
    warm,
    inner_calls: inner,
    latency_s: latency.map(rounded),
    energy_j: null,
    disturbance: disturbance(before, counters()),
  };
}

/**
 * Time the model and the baseline by turns in short blocks, so that a slow machine slows down both.
 *
 * The order of blocks is baseline, model, model, baseline, …; each block has the same number of calls.
 */
async function pair(ort, [call, batch, model], [session, loadS], plan) {
  const names = [blame(plan), ''];
  const feeds = await blaming(names[0], () => new Feeds(ort, session, plan));
  if (feeds.batch !== batch) {
    throw new WorkerError(`${names[0]}it takes ${feeds.batch} inputs a call, the model ${batch}`);
  }
  const [mine, theirs] = [model, feeds].map(({ ready }) => Object.values(ready[0]).map(({ dims }) => dims.join('×')));
  if (String(mine) !== String(theirs)) {
    throw new WorkerError(`${names[0]}it is fed ${theirs.join(', ')}, the model ${mine.join(', ')}; give both the same`);
  }
  const callers = [caller(session, feeds), call];
  const [firsts, typical] = [[], []];
  for (const [place, one] of callers.entries()) {
    firsts.push(await blaming(names[place], () => timed(one, 0)));
    const [warmup] = await blaming(names[place], () => warmUp(one, plan));
    typical.push(warmup.length ? median(warmup.slice(-10)) : firsts[place]);
  }
  const shortest = Math.min(...typical);
  const inner = shortest > 0 && shortest < SHORTEST_S ? Math.ceil(SHORTEST_S / shortest) : 1;
  const wanted = plan.block_s / (inner * Math.max(...typical, 1e-9));
  const size = Math.max(3, Math.ceil(Math.min(plan.max_calls, wanted)));
  const spent = [[], []];
  const before = counters();
  const begin = clock();
  while (spent[1].length < plan.max_calls) {
    const turn = spent[1].length;
    if (turn >= plan.min_calls && clock() - begin >= plan.max_s) break;
    for (const place of (turn / size) % 2 === 0 ? [0, 1] : [1, 0]) {
      spent[place].push(...(await blaming(names[place], () => block(callers[place], turn, size, inner))));
    }
  }
  const meanwhile = disturbance(before, counters());
  await blaming(names[0], () => checkOutputs(session, feeds));
  return {
    first_call_s: firsts[1],
    inner_calls: inner,
    block_calls: size,
    latency_s: spent[1].map(rounded),
    baseline: {
      load_s: loadS,
      first_call_s: firsts[0],
      latency_s: spent[0].map(rounded),
      fingerprint: fingerprint(ort, plan, digestOf(plan.baseline), feeds),
    },
    disturbance: meanwhile,
  };
}

/** Return the seconds per call from number `first` on, each the mean of `inner` calls. */
async function block(call, first, size, inner) {
  const spent = [];
  for (let number = first; number < first + size; number++) {
    const start = clock();
    for (let offset = 0; offset < inner; offset++) await call(number * inner + offset);
    spent.push((clock() - start) / inner);
  }
  return spent;
}

/**
 * Call until three blocks of ten calls have medians within 2 %, or until the time is over.
 *
 * V8 compiles wasm twice: first quickly, and then again, in other threads, the code that is called often. The second
 * compilation takes about a second; until it ends, calls take two to six times as long, but evenly enough to look
 * stable. Therefore only blocks without compilation count, and the time limit is at least COMPILING_S; a plan whose
 * warm-up is 0 has no warm-up.
 */
async function warmUp(call, plan) {
  const limit = plan.warmup_s > 0 ? Math.max(plan.warmup_s, COMPILING_S) : 0;
  const compiling = compilerWatch(plan.intra_op_threads);
  const spent = [];
  let [total, medians] = [0, []];
  while (total < limit) {
    const block = [];
    while (block.length < 10 && total < limit) {
      block.push(await timed(call, spent.length + block.length));
      total += block.at(-1);
    }
    spent.push(...block);
    medians = compiling() ? [] : [...medians.slice(-2), median(block)];
    if (medians.length === 3 && Math.max(...medians) <= 1.02 * Math.min(...medians)) return [spent, true];
  }
  return [spent, false];
}

/** Return a function that detects a running compiler; if it cannot be detected, one second is assumed. */
function compilerWatch(threads) {
  const others = () => {
    const main = Number(readText('/proc/self/schedstat').split(' ')[0]) / 1e9; // of the main thread only
    const all = process.cpuUsage();
    return main > 0 && threads === 1 ? (all.user + all.system) / 1e6 - main : null;
  };
  const begin = clock();
  let [since, before, busy] = [begin, others(), true];
  return () => {
    const now = clock();
    if (before === null) return now - begin < 1;
    if (now - since >= 0.1) {
      const after = others();
      busy = after - before > 0.2 * (now - since); // garbage collection takes a few per cent
      [since, before] = [now, after];
    }
    return busy;
  };
}

/** Count the calls that finish in `max_s`. */
async function throughput(call, plan) {
  await warmUp(call, plan);
  const before = counters();
  const begin = clock();
  let calls = 0;
  while (calls < plan.min_calls || clock() < begin + plan.max_s) await call(calls++);
  return { calls, elapsed_s: clock() - begin, sessions: 1, disturbance: disturbance(before, counters()) };
}

/** Return the kernels from ONNX Runtime's profile of a separate session, because profiling slows calls down. */
async function profile(ort, call, feeds, plan, model) {
  await warmUp(call, plan); // sessions share the compiled code; otherwise the profile would include V8's compilation
  const session = await makeSession(ort, plan, model, { enableProfiling: true });
  const profiled = caller(session, feeds);
  for (let number = 0; number < plan.min_calls; number++) await profiled(number);
  const printed = await printedBy(() => session.endProfiling());
  const text = printed.slice(printed.indexOf('['), printed.lastIndexOf(']') + 1);
  return { kernels: text ? kernelsOf(JSON.parse(text)) : [], assigned: [] };
}

/** Return what `action` prints to stdout; onnxruntime-web writes profiles there, because wasm has no files. */
async function printedBy(action) {
  const [write, writeSync] = [process.stdout.write, fs.writeSync];
  let text = '';
  const keep = (chunk) => {
    text += chunk;
    return true;
  };
  process.stdout.write = keep;
  fs.writeSync = (file, chunk, ...rest) => (file === 1 ? keep(chunk) : writeSync(file, chunk, ...rest));
  try {
    await action();
  } finally {
    [process.stdout.write, fs.writeSync] = [write, writeSync];
  }
  return text;
}

/** Return op type, node and µs per call of each kernel, without the first call, which includes set-up. */
function kernelsOf(events) {
  const kernels = new Map();
  for (const { cat, name, args, dur } of events) {
    if (cat !== 'Node' || !name.endsWith('_kernel_time')) continue;
    const node = name.slice(0, -'_kernel_time'.length);
    const key = `${node} ${args.node_index ?? ''}`;
    // Inside wasm the nodes run on ONNX Runtime's CPU provider; this is not a fallback.
    const provider = args.provider === 'CPUExecutionProvider' ? 'wasm' : (args.provider ?? '');
    if (!kernels.has(key)) kernels.set(key, { provider, op_type: args.op_name, node, us: [] });
    kernels.get(key).us.push(dur);
  }
  for (const { us } of kernels.values()) if (us.length > 1) us.shift();
  return [...kernels.values()];
}

/** Write the first output for every row to plan.outputs (.npy, float32) and return its shape. */
async function predict(session, feeds, plan) {
  if (feeds.random) throw new WorkerError('mode predict needs `inputs`');
  const { count, batch } = feeds;
  const file = fs.openSync(plan.outputs, 'w');
  let [shape, told] = [null, 0];
  for (let start = 0; start < count; start += batch) {
    const some = Math.min(batch, count - start);
    // A fixed batch is filled up with the first rows; their answers are dropped.
    const fed = feeds.fixed ? batch : some;
    const call = caller(session, { ready: [feeds.feed(start, fed)], output: feeds.output });
    const [maps, rows] = [plan.answers === 'classes', plan.answers === 'rows'];
    const answer = await { rows: oneRowEach, classes: classMaps, boxes: detections }[plan.answers](call, fed, feeds);
    const labels = rows && ['int32', 'int64'].includes(answer.type) && product(answer.dims) === fed; // one class per row
    const sizes = rows ? [answer.dims[1]] : answer.dims.slice(1);
    const width = labels ? 1 : product(sizes);
    if (!shape) {
      shape = labels ? [count] : [count, ...sizes];
      fs.writeFileSync(file, npyHeader(shape, maps ? '|u1' : '<f4'));
    }
    const values = (maps ? answer.data : asFloats(answer)).subarray(0, some * width);
    fs.writeFileSync(file, new Uint8Array(values.buffer, values.byteOffset, values.byteLength)); // appends to the file
    if (clock() - told > 0.2) {
      told = clock();
      process.stdout.write(`done ${start + some} ${count}\n`);
    }
  }
  fs.closeSync(file);
  return shape;
}

/** Return the first output, (rows, C) or (rows, C, 1, ...); throw WorkerError if it has another shape. */
async function oneRowEach(call, rows, { axes, plan }) {
  const which = plan.output ? `output ${plan.output}` : 'the first output';
  const needed = 'accuracy needs one row of logits per input';
  const answer = await tensorOf(call, `${which} is no tensor; ${needed}`);
  const { type } = answer;
  // A model without a batch returns only one row.
  const dims = Object.keys(axes).length || answer.dims[0] === 1 ? answer.dims : [1, ...answer.dims];
  const labels = ['int32', 'int64'].includes(type) && dims.length === 1;
  const wide = labels || (dims.length >= 2 && dims.slice(2).every((size) => size === 1));
  if (!wide || dims[0] !== rows || type === 'string') {
    throw new WorkerError(`${which} is ${type} ${listed(dims)}; ${needed}`);
  }
  return { type, dims, data: answer.data };
}

/** The answer of a call; throw WorkerError with the text `otherwise` if it is a sequence or a map. */
async function tensorOf(call, otherwise) {
  try {
    return await call(0);
  } catch (error) {
    // onnxruntime-web can run such a model, but it cannot read outputs that are sequences or maps.
    if (!/on index 0\..*non-tensor/.test(error.message)) throw error;
    throw new WorkerError(otherwise);
  }
}

/** Return the most likely class of each place, (rows, ...) as uint8, of an output (rows, C, ...), as worker.py does. */
async function classMaps(call, rows, { axes, plan }) {
  const which = plan.output ? `output ${plan.output}` : 'the first output';
  const needed = 'a class map needs one number for each class of each pixel, and at most 256 classes';
  const answer = await tensorOf(call, `${which} is no tensor; ${needed}`);
  const dims = Object.keys(axes).length || answer.dims[0] === 1 ? answer.dims : [1, ...answer.dims];
  const whole = /^u?int/.test(answer.type) && dims.length >= 2;
  const numbers = answer.type.startsWith('float') && dims.length >= 3 && dims[1] <= 256;
  if (!(whole || numbers) || dims[0] !== rows) {
    throw new WorkerError(`${which} is ${answer.type} ${listed(dims)}; ${needed}`);
  }
  if (whole) {
    if (!answer.data.every((value) => value >= 0 && value < 256)) throw new WorkerError(`${which}: ${needed}`);
    return { type: 'uint8', dims, data: Uint8Array.from(answer.data, Number) };
  }
  const values = asFloats(answer);
  if (!values.every(Number.isFinite)) throw new WorkerError('gives NaN or infinite outputs');
  const [classes, places] = [dims[1], product(dims.slice(2))];
  const data = new Uint8Array(rows * places);
  for (let row = 0; row < rows; row += 1) {
    for (let place = 0; place < places; place += 1) {
      const begin = row * classes * places + place;
      let best = 0;
      for (let k = 1; k < classes; k += 1) if (values[begin + k * places] > values[begin + best * places]) best = k;
      data[row * places + place] = best;
    }
  }
  return { type: 'uint8', dims: [rows, ...dims.slice(2)], data };
}

/**
 * Return what non-maximum suppression leaves of an output of corners and scores (rows, 4 + C, L), as float32
 * (rows, KEPT, 6), as worker.py does.
 */
async function detections(call, rows, { axes, plan }) {
  const which = plan.output ? `output ${plan.output}` : 'the first output';
  const needed = 'detection needs corners and scores (batch, 4 + C, L)';
  const answer = await tensorOf(call, `${which} is no tensor; ${needed}`);
  const dims = Object.keys(axes).length || answer.dims[0] === 1 ? answer.dims : [1, ...answer.dims];
  const ready = dims[1] > 0 && dims[1] <= KEPT && dims[2] === 6; // perhaps of a file with the suppression in its graph
  if (!answer.type.startsWith('float') || dims.length !== 3 || dims[0] !== rows || (!ready && dims[1] < 5)) {
    throw new WorkerError(`${which} is ${answer.type} ${listed(dims)}; ${needed}`);
  }
  const values = asFloats(answer);
  if (!values.every(Number.isFinite)) throw new WorkerError('gives NaN or infinite outputs');
  const whole = values.every((value, place) => place % 6 !== 5 || (Number.isInteger(value) && value >= -1)); // the classes
  const data = new Float32Array(rows * KEPT * 6);
  const size = dims[1] * dims[2];
  if (ready && whole) {
    for (let row = 0; row < rows; row += 1) {
      for (let k = dims[1]; k < KEPT; k += 1) data[(row * KEPT + k) * 6 + 5] = -1;
      data.set(values.subarray(row * size, (row + 1) * size), row * KEPT * 6);
    }
    return { type: 'float32', dims: [rows, KEPT, 6], data };
  }
  if (dims[1] < 5) throw new WorkerError(`${which} is ${answer.type} ${listed(dims)}; ${needed}`);
  for (let row = 0; row < rows; row += 1) {
    data.set(suppressed(values.subarray(row * size, (row + 1) * size), dims[1] - 4, dims[2]), row * KEPT * 6);
  }
  return { type: 'float32', dims: [rows, KEPT, 6], data };
}

/** Return the detections (KEPT, 6) of one image: x1, y1, x2, y2, score and class; rows of class -1 are unused. */
function suppressed(raw, classes, places) {
  const found = [];
  for (let label = 0; label < classes; label += 1) {
    for (let place = 0; place < places; place += 1) {
      const score = raw[(4 + label) * places + place];
      if (score > LOWEST) found.push([...[0, 1, 2, 3].map((side) => raw[side * places + place]), score, label]);
    }
  }
  found.sort((a, b) => b[4] - a[4]); // stable: equal scores keep the order of classes and places
  const kept = [];
  for (const one of found.slice(0, FIRST)) {
    if (kept.length === KEPT) break;
    if (kept.every((other) => other[5] !== one[5] || !overlapping(one, other))) kept.push(one);
  }
  const rows = new Float32Array(KEPT * 6);
  for (let row = 0; row < KEPT; row += 1) rows.set(kept[row] ?? [0, 0, 0, 0, 0, -1], row * 6);
  return rows;
}

/** Whether the intersection over union of two boxes is larger than OVERLAP; in single precision, as in NumPy. */
function overlapping(one, other) {
  const side = (low, high) => Math.max(Math.fround(high - low), 0);
  const area = ([x1, y1, x2, y2]) => Math.fround(side(x1, x2) * side(y1, y2));
  const width = side(Math.max(one[0], other[0]), Math.min(one[2], other[2]));
  const both = Math.fround(width * side(Math.max(one[1], other[1]), Math.min(one[3], other[3])));
  const union = Math.fround(Math.fround(area(one) + area(other)) - both);
  return both > Math.fround(Math.fround(OVERLAP) * union);
}

function npyHeader(shape, descr = '<f4') {
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(', ')}${shape.length === 1 ? ',' : ''}), }`;
  const padded = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + '\n'; // to a multiple of 64
  const size = Buffer.alloc(2);
  size.writeUInt16LE(padded.length);
  return Buffer.concat([Buffer.from('\x93NUMPY\x01\x00', 'latin1'), size, Buffer.from(padded, 'latin1')]);
}

function asFloats(tensor) {
  if (tensor.data instanceof Float32Array) return tensor.data;
  const halves = tensor.type === 'float16' && tensor.data instanceof Uint16Array;
  return Float32Array.from(tensor.data, halves ? halfAsFloat : Number);
}

function halfAsFloat(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

function digestOf(file) {
  const [hash, buffer, source] = [createHash('sha256'), Buffer.alloc(1 << 20), fs.openSync(file, 'r')];
  for (let got; (got = fs.readSync(source, buffer, 0, buffer.length, null)); ) hash.update(buffer.subarray(0, got));
  fs.closeSync(source);
  return hash.digest('hex');
}

/** Return the peak resident memory of this process in bytes (VmHWM); null if /proc does not report it. */
function peakMemory() {
  const found = /^VmHWM:\s*(\d+)/m.exec(readText('/proc/self/status'));
  return found ? Number(found[1]) * 1024 : null;
}

/** Return the text of a system file; empty if it cannot be read. */
function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

/** Read the system's counters that show whether other programs used the machine; null where one is missing. */
function counters() {
  const words = (file) => readText(file).split('\n')[0].split(/\s+/).filter(Boolean);
  const wait = words('/proc/self/schedstat');
  const cpu = words('/proc/stat').slice(1, 9).map(Number);
  const [mhz] = words('/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq');
  const [load] = words('/proc/loadavg');
  const own = process.cpuUsage();
  const sum = (ticks) => ticks.reduce((a, b) => a + b, 0);
  return {
    time_s: clock(),
    waited_s: wait.length === 3 ? Number(wait[1]) / 1e9 : null, // time in which it was ready but had no core
    busy_ticks: sum([...cpu.slice(0, 3), ...cpu.slice(5, 7)]),
    own_s: (own.user + own.system) / 1e6,
    ticks: cpu.length === 8 ? sum(cpu) : null,
    steal_ticks: cpu[7], // time when the hypervisor gave the core to others
    mhz: mhz ? Number(mhz) / 1000 : null,
    load_1min: load ? Number(load) : null,
  };
}

/** Return how much other load there was between two readings; worker.py explains the values. */
function disturbance(before, after) {
  const elapsed = Math.max(after.time_s - before.time_s, 1e-9);
  const waited = before.waited_s === null ? null : (after.waited_s - before.waited_s) / elapsed;
  let [steal, others] = [null, null];
  if (before.ticks !== null && after.ticks > before.ticks) {
    steal = (after.steal_ticks - before.steal_ticks) / (after.ticks - before.ticks);
    const busy = (after.busy_ticks - before.busy_ticks) / TICKS_PER_S;
    // Ticks are too coarse for a very short measurement.
    others = elapsed < 0.2 ? null : Math.max(0, (busy - (after.own_s - before.own_s)) / elapsed);
  }
  return { waited, steal, others_cores: others, mhz: after.mhz, load_1min: before.load_1min };
}

/** Return the values that must be equal for two records to be comparable. */
function fingerprint(ort, plan, digest, feeds) {
  const architectures = { x64: 'x86_64', arm64: os.platform() === 'linux' ? 'aarch64' : 'arm64' };
  return {
    ...Object.fromEntries(SESSION_KEYS.map((key) => [key, plan[key]])),
    model_sha256: digest,
    providers_assigned: ['wasm'],
    nodes_by_provider: {}, // onnxruntime-web does not report them
    ops_elsewhere: {},
    onnxruntime: ort.env.versions.web,
    numpy: null,
    python: null,
    node: process.versions.node,
    system: { Windows_NT: 'Windows' }[os.type()] ?? os.type(),
    architecture: architectures[process.arch] ?? process.arch,
    cpu: cpuModel(),
    gpu: '',
    inputs: feeds === null ? 'none' : feeds.random ? 'random' : 'data',
    ...(Object.keys(plan.values).length ? { values: plan.values } : {}),
    ...(feeds?.ready ? fedWith(feeds) : {}),
    ...(feeds === null || plan.sequence_length === null ? {} : { sequence_length: feeds.length }),
  };
}

/** Return the shapes, types and batch axes of the inputs. */
function fedWith({ ready, inputs, axes }) {
  const of = (value) => Object.fromEntries(inputs.map((input) => [input.name, value(input)]));
  return {
    shapes: of((input) => [...ready[0][input.name].dims]),
    input_types: of((input) => typeName(input).slice(7, -1)),
    batch_axes: axes,
  };
}

/** Return the name of the CPU that the system reports. */
function cpuModel() {
  const found = /^(?:model name|hardware)\s*:(.*)$/im.exec(readText('/proc/cpuinfo'));
  return found ? found[1].trim() : (os.cpus()[0]?.model ?? '');
}

process.exit(await main()); // an explicit exit, because wasm's threads would keep the process alive
