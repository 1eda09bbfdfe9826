/* Rule: time is a deadline on CLOCK_MONOTONIC, never a duration, so that lateness of a wake-up does
 * not add up; a batch that was already waiting starts when the one before it ends, as on a stream
 * of a real GPU. Batches of all models that name the same GPU run one at a time, first come first
 * served (a plain mutex would let the model that just ran run again).
 * Chance is a xorshift64* generator per model, so that the same seed gives the same latencies. */
#define _GNU_SOURCE
#include "gpu.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static const double LATENCY_US_MAX = 60e6; /* a typing error must not stop the server for hours */
static const double THROTTLE_MAX = 1000.0;

struct Gpu {
  char name[NAME_MAX_BYTES];
  pthread_mutex_t mutex;
  pthread_cond_t turn;
  uint64_t next_ticket, serving;
  uint64_t free_ns; /* end of the last execution */
  Gpu *next;
};

uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool number(const char *text, double low, double high, double *out) {
  char *end;
  double value = strtod(text, &end);
  while (*end == ' ' || *end == '\n') end++;
  if (end == text || *end || !isfinite(value) || value < low || value > high) return false;
  *out = value;
  return true;
}

static bool table(Latency *latency, const char *text) {
  latency->table_size = 0;
  for (;;) {
    char *end;
    int size = latency->table_size;
    double rows = strtod(text, &end);
    if (size == TABLE_MAX || end == text || *end != ':' || !(rows >= 1 && rows <= 1e6)) return false;
    if (size && rows <= latency->table_rows[size - 1]) return false;
    text = end + 1;
    double us = strtod(text, &end);
    if (end == text || !(us >= 0 && us <= LATENCY_US_MAX)) return false;
    latency->table_rows[size] = rows;
    latency->table_us[size] = us;
    latency->table_size = size + 1;
    if (*end == '\0') return true;
    if (*end != ',') return false;
    text = end + 1;
  }
}

static bool seed(Latency *latency, const char *text) {
  char *end;
  errno = 0;
  latency->seed = strtoull(text, &end, 10);
  return end != text && !*end && *text != '-' && errno == 0;
}

bool latency_set(Latency *latency, const char *name, const char *value, char *message) {
  struct {
    const char *name;
    double low, high, unit;
    double *out;
  } numbers[] = {
      {"a_us", 0, LATENCY_US_MAX, 1, &latency->a_us},
      {"b_us", 0, LATENCY_US_MAX, 1, &latency->b_us},
      {"jitter_pct", 0, 200, 0.01, &latency->jitter_sigma},
      {"overrun_rate", 0, 1, 1, &latency->overrun_rate},
      {"overrun_factor", 1, THROTTLE_MAX, 1, &latency->overrun_factor},
      {"throttle", 1 / THROTTLE_MAX, THROTTLE_MAX, 1, &latency->throttle},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    if (strcmp(name, numbers[i].name)) continue;
    double parsed;
    if (!number(value, numbers[i].low, numbers[i].high, &parsed)) {
      snprintf(message, MESSAGE_MAX_BYTES, "'%.64s' is not a number from %g to %g", value,
               numbers[i].low, numbers[i].high);
      return false;
    }
    *numbers[i].out = parsed * numbers[i].unit;
    return true;
  }
  if (!strcmp(name, "table")) {
    snprintf(message, MESSAGE_MAX_BYTES,
             "'%.64s' is not a list rows:us,rows:us,... of at most %d entries with ascending rows",
             value, TABLE_MAX);
    return table(latency, value);
  }
  if (!strcmp(name, "seed")) {
    snprintf(message, MESSAGE_MAX_BYTES, "'%.64s' is not an unsigned 64-bit integer", value);
    return seed(latency, value);
  }
  if (!strcmp(name, "control_file")) {
    snprintf(message, MESSAGE_MAX_BYTES, "the path is longer than %d bytes", PATH_MAX_BYTES - 1);
    return (size_t)snprintf(latency->control_file, PATH_MAX_BYTES, "%s", value) < PATH_MAX_BYTES;
  }
  snprintf(message, MESSAGE_MAX_BYTES,
           "unknown; known are gpu, a_us, b_us, table, jitter_pct, overrun_rate, overrun_factor, "
           "throttle, control_file, seed and any tritonsched_*");
  return false;
}

Gpu *gpu_by_name(const char *name) {
  static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
  static Gpu *registry = NULL;
  pthread_mutex_lock(&registry_mutex);
  Gpu *gpu = registry;
  while (gpu && strcmp(gpu->name, name)) gpu = gpu->next;
  if (!gpu && (gpu = calloc(1, sizeof *gpu))) {
    snprintf(gpu->name, sizeof gpu->name, "%s", name);
    pthread_mutex_init(&gpu->mutex, NULL);
    pthread_cond_init(&gpu->turn, NULL);
    gpu->next = registry;
    registry = gpu;
  }
  pthread_mutex_unlock(&registry_mutex);
  return gpu;
}

/* Uniform in [0, 1). */
static double uniform(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return (double)((*state * 0x2545F4914F6CDD1Du) >> 11) * 0x1p-53;
}

/* The table between its entries and beyond its last one is linear; below its first, constant. */
static double expected_us(const Latency *latency, double rows) {
  int last = latency->table_size - 1, i = 1;
  if (last < 0) return latency->a_us + latency->b_us * rows;
  if (last == 0 || rows <= latency->table_rows[0]) return latency->table_us[0];
  while (i < last && latency->table_rows[i] < rows) i++;
  double x = (rows - latency->table_rows[i - 1]) /
             (latency->table_rows[i] - latency->table_rows[i - 1]);
  double us = latency->table_us[i - 1] + x * (latency->table_us[i] - latency->table_us[i - 1]);
  return us > 0 ? us : 0;
}

static double current_throttle(const Latency *latency) {
  char text[64];
  double throttle = latency->throttle;
  if (!*latency->control_file) return throttle;
  int file = open(latency->control_file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return throttle;
  ssize_t size = read(file, text, sizeof text - 1);
  close(file);
  if (size <= 0) return throttle;
  text[size] = '\0';
  number(text, 1 / THROTTLE_MAX, THROTTLE_MAX, &throttle);
  return throttle;
}

static double drawn_us(const Latency *latency, uint64_t *random, double rows, double throttle) {
  double us = expected_us(latency, rows) * throttle, normal = -6;
  /* The sum of twelve uniforms is close to normal (Irwin-Hall); minus half the variance keeps the
   * mean of the log-normal factor at 1. The draws are made even where they do not count, so that
   * the same seed gives the same sequence with and without jitter. */
  for (int i = 0; i < 12; i++) normal += uniform(random);
  double sigma = latency->jitter_sigma;
  us *= exp(sigma * normal - sigma * sigma / 2);
  if (uniform(random) < latency->overrun_rate) us *= latency->overrun_factor;
  return us < LATENCY_US_MAX ? us : LATENCY_US_MAX;
}

Execution gpu_acquire(Gpu *gpu, const Latency *latency, uint64_t *random, uint64_t rows) {
  Execution execution;
  uint64_t asked_ns = now_ns();
  pthread_mutex_lock(&gpu->mutex);
  uint64_t ticket = gpu->next_ticket++;
  while (gpu->serving != ticket) pthread_cond_wait(&gpu->turn, &gpu->mutex);
  execution.throttle = current_throttle(latency);
  execution.start_ns = asked_ns > gpu->free_ns ? asked_ns : gpu->free_ns;
  double us = drawn_us(latency, random, (double)rows, execution.throttle);
  execution.end_ns = gpu->free_ns = execution.start_ns + (uint64_t)(us * 1000.0);
  pthread_mutex_unlock(&gpu->mutex);
  return execution;
}

void gpu_finish(Gpu *gpu, const Execution *execution) {
  static __thread bool sharp = false;
  struct timespec end = {.tv_sec = (time_t)(execution->end_ns / 1000000000u),
                         .tv_nsec = (long)(execution->end_ns % 1000000000u)};
  if (!sharp) sharp = prctl(PR_SET_TIMERSLACK, 1UL) == 0; /* the default lets it wake 50 us late */
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR) continue;
  pthread_mutex_lock(&gpu->mutex);
  gpu->serving++;
  pthread_cond_broadcast(&gpu->turn);
  pthread_mutex_unlock(&gpu->mutex);
}
