/* A Triton backend whose "GPU" sleeps. It gathers the rows of all requests handed over, as a backend
 * does before it copies them to a GPU, occupies the emulated GPU for as long as the parameters say,
 * and answers per row what a client can check: the sum of its elements and its first element.
 *
 * Rule: nothing a request holds may bring Triton down. A request at fault gets its own error answer;
 * the others of the batch are answered as if it had not come.
 *
 * Model: one FP32 input of any shape; outputs FP32 [2] (sum added up in double precision, first
 * element) and, if wanted, FP64 [4] (start and end on CLOCK_MONOTONIC in ns, rows of the batch,
 * throttle in force). Parameters: README of model_repository.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "json.h"
#include "tritonbackend.h"

#define EXPORT __attribute__((visibility("default")))
#define TRY(call)                          \
  do {                                     \
    TRITONSERVER_Error *try_error = (call); \
    if (try_error) return try_error;       \
  } while (0)

enum { OUTPUTS_MAX = 2, SUM_COLUMNS = 2, STATS_COLUMNS = 4 };

typedef struct {
  char name[NAME_MAX_BYTES];
  bool is_stats;
} OutputSpec;

typedef struct {
  const char *name;
  char input[NAME_MAX_BYTES];
  OutputSpec outputs[OUTPUTS_MAX];
  int output_count;
  bool has_rows; /* max_batch_size > 0: the first dimension counts rows */
  Latency latency;
  Gpu *gpu;
  uint64_t random;
} Model;

typedef struct {
  Model *model;
  char *staging; /* the rows of one batch; grows to the largest batch seen */
  size_t staging_size;
} Instance;

/* One request of a batch. `error` is what it will be answered, if not NULL. */
typedef struct {
  TRITONBACKEND_Response *response;
  TRITONSERVER_Error *error;
  size_t offset, rows, row_elements; /* at `offset` of staging: the rows' sums, then the rows */
} Member;

static TRITONSERVER_Error *invalid(const char *format, ...) {
  char text[MESSAGE_MAX_BYTES * 2];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return TRITONSERVER_ErrorNew(ERROR_INVALID_ARG, text);
}

/* Errors of calls whose failure changes nothing for the client are logged and dropped. */
static void note(TRITONSERVER_Error *error) {
  if (!error) return;
  TRITONSERVER_Error *log_error =
      TRITONSERVER_LogMessage(LOG_ERROR, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(error));
  if (log_error) TRITONSERVER_ErrorDelete(log_error);
  TRITONSERVER_ErrorDelete(error);
}

/* ---- the model's configuration ---- */

static TRITONSERVER_Error *read_parameters(Model *model, Json parameters) {
  char name[NAME_MAX_BYTES], value[PATH_MAX_BYTES], message[MESSAGE_MAX_BYTES];
  Json cursor = {NULL, NULL}, key, entry;
  while (json_next_member(parameters, &cursor, &key, &entry)) {
    if (!json_string(key, name, sizeof name))
      return invalid("model '%s': a parameter's name is longer than %d bytes", model->name,
                     NAME_MAX_BYTES - 1);
    if (!strncmp(name, "tritonsched_", strlen("tritonsched_"))) continue;
    if (!json_string(json_member(entry, "string_value"), value, sizeof value))
      return invalid("model '%s': parameter '%s' has no usable string_value", model->name, name);
    if (!strcmp(name, "gpu")) {
      if (!*value || strlen(value) >= NAME_MAX_BYTES)
        return invalid("model '%s': parameter 'gpu' must have 1 to %d bytes", model->name,
                       NAME_MAX_BYTES - 1);
      model->gpu = gpu_by_name(value);
    } else if (!latency_set(&model->latency, name, value, message)) {
      return invalid("model '%s': parameter '%s': %s", model->name, name, message);
    }
  }
  if (!model->gpu)
    return invalid("model '%s': parameter 'gpu' is missing; name the emulated GPU it runs on",
                   model->name);
  return NULL;
}

static TRITONSERVER_Error *read_output(Model *model, Json output) {
  char type[32] = "";
  OutputSpec *spec = &model->outputs[model->output_count];
  Json dims = json_member(output, "dims");
  long columns = json_integer(json_element(dims, 0), -1);
  json_string(json_member(output, "data_type"), type, sizeof type);
  spec->is_stats = !strcmp(type, "TYPE_FP64") && columns == STATS_COLUMNS;
  bool is_sum = !strcmp(type, "TYPE_FP32") && columns == SUM_COLUMNS;
  if (!json_string(json_member(output, "name"), spec->name, sizeof spec->name) ||
      json_element(dims, 1).at || !(is_sum || spec->is_stats))
    return invalid("model '%s': an output must be TYPE_FP32 with dims [2] or TYPE_FP64 with dims [4]",
                   model->name);
  model->output_count++;
  return NULL;
}

static TRITONSERVER_Error *read_config(Model *model, Json config) {
  char type[32] = "";
  Json inputs = json_member(config, "input"), outputs = json_member(config, "output");
  Json input = json_element(inputs, 0);
  json_string(json_member(input, "data_type"), type, sizeof type);
  if (!json_string(json_member(input, "name"), model->input, sizeof model->input) ||
      strcmp(type, "TYPE_FP32") || json_element(inputs, 1).at)
    return invalid("model '%s': there must be exactly one input, of TYPE_FP32", model->name);
  if (!json_element(outputs, 0).at || json_element(outputs, OUTPUTS_MAX).at)
    return invalid("model '%s': there must be one or two outputs", model->name);
  for (size_t i = 0; json_element(outputs, i).at; i++)
    TRY(read_output(model, json_element(outputs, i)));
  model->has_rows = json_integer(json_member(config, "max_batch_size"), 0) > 0;
  return read_parameters(model, json_member(config, "parameters"));
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_Initialize(TRITONBACKEND_Backend *backend) {
  uint32_t major, minor;
  (void)backend;
  TRY(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == API_VERSION_MAJOR && minor >= API_VERSION_MINOR) return NULL;
  return invalid("emulated_gpu needs backend API %d.%d or a later %d.x, this Triton has %u.%u",
                 API_VERSION_MAJOR, API_VERSION_MINOR, API_VERSION_MAJOR, major, minor);
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model *handle) {
  TRITONSERVER_Message *message = NULL;
  Json text;
  size_t size;
  Model *model = calloc(1, sizeof *model);
  if (!model) return TRITONSERVER_ErrorNew(ERROR_INTERNAL, "emulated_gpu: out of memory");
  model->latency = (Latency){.throttle = 1, .overrun_factor = 1, .seed = 1};
  TRITONSERVER_Error *error = TRITONBACKEND_ModelName(handle, &model->name);
  if (!error) error = TRITONBACKEND_ModelConfig(handle, 1, &message);
  if (!error) error = TRITONSERVER_MessageSerializeToJson(message, &text.at, &size);
  if (!error) {
    text.end = text.at + size;
    error = read_config(model, text);
  }
  if (message) note(TRITONSERVER_MessageDelete(message));
  /* A xorshift generator must not start at 0; the odd constant spreads small seeds. */
  model->random = (model->latency.seed + 1) * 0x9E3779B97F4A7C15u | 1;
  if (!error) error = TRITONBACKEND_ModelSetState(handle, model);
  if (error) free(model);
  return error;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model *handle) {
  void *model;
  TRY(TRITONBACKEND_ModelState(handle, &model));
  free(model);
  return NULL;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceInitialize(
    TRITONBACKEND_ModelInstance *handle) {
  TRITONBACKEND_Model *model_handle;
  void *model;
  TRY(TRITONBACKEND_ModelInstanceModel(handle, &model_handle));
  TRY(TRITONBACKEND_ModelState(model_handle, &model));
  Instance *instance = calloc(1, sizeof *instance);
  if (!instance) return TRITONSERVER_ErrorNew(ERROR_INTERNAL, "emulated_gpu: out of memory");
  instance->model = model;
  return TRITONBACKEND_ModelInstanceSetState(handle, instance);
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceFinalize(
    TRITONBACKEND_ModelInstance *handle) {
  void *state;
  TRY(TRITONBACKEND_ModelInstanceState(handle, &state));
  Instance *instance = state;
  if (instance) free(instance->staging);
  free(instance);
  return NULL;
}

/* ---- one batch ---- */

static TRITONSERVER_Error *reserve(Instance *instance, size_t size) {
  if (size <= instance->staging_size) return NULL;
  char *grown = realloc(instance->staging, size);
  if (!grown) return TRITONSERVER_ErrorNew(ERROR_UNAVAILABLE, "emulated_gpu: out of memory");
  instance->staging = grown;
  instance->staging_size = size;
  return NULL;
}

static size_t sums_size(const Member *member) {
  return member->rows * SUM_COLUMNS * sizeof(float);
}

/* Copies a request's rows behind `used` bytes of staging, leaving room for their sums. Its tensor
 * may lie in several buffers, of which none need end at an element. */
static TRITONSERVER_Error *gather(Instance *instance, TRITONBACKEND_Request *request, size_t used,
                                  Member *member) {
  const Model *model = instance->model;
  TRITONBACKEND_Input *input;
  TRITONSERVER_DataType type;
  const int64_t *shape;
  uint32_t dims_count, buffer_count;
  uint64_t byte_size;
  TRY(TRITONBACKEND_RequestInput(request, model->input, &input));
  TRY(TRITONBACKEND_InputProperties(input, NULL, &type, &shape, &dims_count, &byte_size,
                                    &buffer_count));
  size_t rows = model->has_rows && dims_count ? (size_t)shape[0] : 1;
  if (type != TYPE_FP32 || rows == 0 || byte_size == 0 || byte_size % (rows * sizeof(float)))
    return invalid("model '%s': input '%s' has %llu bytes, which is not %zu rows of FP32",
                   model->name, model->input, (unsigned long long)byte_size, rows);
  *member = (Member){.response = member->response, .offset = used, .rows = rows,
                     .row_elements = byte_size / sizeof(float) / rows};
  size_t at = used + sums_size(member), copied = 0;
  TRY(reserve(instance, at + byte_size));
  for (uint32_t i = 0; i < buffer_count; i++) {
    const void *buffer;
    uint64_t size;
    TRITONSERVER_MemoryType memory = MEMORY_CPU;
    int64_t memory_id = 0;
    TRY(TRITONBACKEND_InputBuffer(input, i, &buffer, &size, &memory, &memory_id));
    if (memory == MEMORY_GPU)
      return invalid("model '%s': input '%s' lies in GPU memory, which an emulated GPU cannot read",
                     model->name, model->input);
    if (size > byte_size - copied)
      return invalid("model '%s': input '%s' has more bytes than its shape", model->name,
                     model->input);
    memcpy(instance->staging + at + copied, buffer, size);
    copied += size;
  }
  if (copied != byte_size)
    return invalid("model '%s': input '%s' has fewer bytes than its shape", model->name,
                   model->input);
  return NULL;
}

static void sum_rows(const Instance *instance, const Member *member) {
  float *out = (float *)(void *)(instance->staging + member->offset);
  const float *at = out + member->rows * SUM_COLUMNS;
  for (size_t row = 0; row < member->rows; row++, at += member->row_elements) {
    double lanes[4] = {0, 0, 0, 0}; /* four chains of additions keep the CPU's adder busy */
    size_t i = 0;
    for (; i + 4 <= member->row_elements; i += 4)
      for (size_t lane = 0; lane < 4; lane++) lanes[lane] += (double)at[i + lane];
    for (; i < member->row_elements; i++) lanes[0] += (double)at[i];
    out[row * SUM_COLUMNS] = (float)(lanes[0] + lanes[1] + lanes[2] + lanes[3]);
    out[row * SUM_COLUMNS + 1] = at[0];
  }
}

static void repeat_stats(const Execution *execution, uint64_t batch_rows, size_t rows, double *out) {
  for (size_t row = 0; row < rows; row++, out += STATS_COLUMNS) {
    out[0] = (double)execution->start_ns;
    out[1] = (double)execution->end_ns;
    out[2] = (double)batch_rows;
    out[3] = execution->throttle;
  }
}

static TRITONSERVER_Error *write_output(const Instance *instance, const Member *member,
                                        const OutputSpec *spec, const Execution *execution,
                                        uint64_t batch_rows) {
  const Model *model = instance->model;
  int64_t columns = spec->is_stats ? STATS_COLUMNS : SUM_COLUMNS;
  size_t element = spec->is_stats ? sizeof(double) : sizeof(float);
  int64_t shape[2] = {(int64_t)member->rows, columns};
  TRITONBACKEND_Output *output;
  TRITONSERVER_MemoryType memory = MEMORY_CPU;
  int64_t memory_id = 0;
  void *buffer;
  TRY(TRITONBACKEND_ResponseOutput(member->response, &output, spec->name,
                                   spec->is_stats ? TYPE_FP64 : TYPE_FP32,
                                   model->has_rows ? shape : shape + 1, model->has_rows ? 2 : 1));
  TRY(TRITONBACKEND_OutputBuffer(output, &buffer, member->rows * (size_t)columns * element, &memory,
                                 &memory_id));
  if (memory == MEMORY_GPU)
    return invalid("model '%s': output '%s' is wanted in GPU memory, which an emulated GPU cannot "
                   "write", model->name, spec->name);
  if (spec->is_stats)
    repeat_stats(execution, batch_rows, member->rows, buffer);
  else
    memcpy(buffer, instance->staging + member->offset, sums_size(member));
  return NULL;
}

static TRITONSERVER_Error *answer(const Instance *instance, TRITONBACKEND_Request *request,
                                  const Member *member, const Execution *execution,
                                  uint64_t batch_rows) {
  const Model *model = instance->model;
  uint32_t wanted;
  TRY(TRITONBACKEND_RequestOutputCount(request, &wanted));
  for (uint32_t i = 0; i < wanted; i++) {
    const char *name;
    TRY(TRITONBACKEND_RequestOutputName(request, i, &name));
    for (int j = 0; j < model->output_count; j++)
      if (!strcmp(name, model->outputs[j].name))
        TRY(write_output(instance, member, &model->outputs[j], execution, batch_rows));
  }
  return NULL;
}

static void close_request(TRITONBACKEND_ModelInstance *handle, TRITONBACKEND_Request *request,
                          Member *member, const Execution *execution, uint64_t exec_start_ns) {
  bool success = member->response && !member->error;
  if (member->response)
    note(TRITONBACKEND_ResponseSend(member->response, RESPONSE_COMPLETE_FINAL, member->error));
  if (member->error) TRITONSERVER_ErrorDelete(member->error);
  note(TRITONBACKEND_ModelInstanceReportStatistics(handle, request, success, exec_start_ns,
                                                   execution->start_ns, execution->end_ns,
                                                   now_ns()));
  note(TRITONBACKEND_RequestRelease(request, REQUEST_RELEASE_ALL));
}

/* Gathers every request it can; returns the rows of the batch. */
static uint64_t gather_all(Instance *instance, TRITONBACKEND_Request **requests, uint32_t count,
                           Member *members) {
  uint64_t rows = 0;
  size_t used = 0;
  for (uint32_t i = 0; i < count; i++) {
    Member *member = &members[i];
    member->error = TRITONBACKEND_ResponseNew(&member->response, requests[i]);
    if (!member->error) member->error = gather(instance, requests[i], used, member);
    if (member->error) continue;
    rows += member->rows;
    used += sums_size(member) + member->rows * member->row_elements * sizeof(float);
  }
  return rows;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance *handle,
                                                              TRITONBACKEND_Request **requests,
                                                              const uint32_t request_count) {
  uint64_t exec_start_ns = now_ns();
  void *state;
  TRY(TRITONBACKEND_ModelInstanceState(handle, &state)); /* an error here leaves Triton the requests */
  Instance *instance = state;
  Model *model = instance->model;
  Member *members = calloc(request_count, sizeof *members);
  if (!members) return TRITONSERVER_ErrorNew(ERROR_UNAVAILABLE, "emulated_gpu: out of memory");
  uint64_t rows = gather_all(instance, requests, request_count, members);
  Execution execution = {exec_start_ns, exec_start_ns, 1};
  if (rows) {
    execution = gpu_acquire(model->gpu, &model->latency, &model->random, rows);
    for (uint32_t i = 0; i < request_count; i++) /* the sums cost none of the emulated time */
      if (!members[i].error) sum_rows(instance, &members[i]);
    gpu_finish(model->gpu, &execution);
  }
  for (uint32_t i = 0; i < request_count; i++) {
    Member *member = &members[i];
    if (!member->error)
      member->error = answer(instance, requests[i], member, &execution, rows);
    close_request(handle, requests[i], member, &execution, exec_start_ns);
  }
  if (rows)
    note(TRITONBACKEND_ModelInstanceReportBatchStatistics(
        handle, rows, exec_start_ns, execution.start_ns, execution.end_ns, now_ns()));
  free(members);
  return NULL;
}
