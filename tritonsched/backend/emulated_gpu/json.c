/* Rule: never read past `end`; what is not the JSON expected is "absent", and the caller, who knows
 * the model and the parameter, words the error. Triton wrote the text, so it is well formed; the
 * depth is bounded by never recursing: nesting is only counted. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

static const Json ABSENT = {NULL, NULL};

static const char *skip_space(const char *at, const char *end) {
  while (at < end && strchr(" \t\r\n", *at)) at++;
  return at;
}

static const char *skip_string(const char *at, const char *end) {
  for (at++; at < end && *at != '"'; at++)
    if (*at == '\\') at++;
  return at < end ? at + 1 : end;
}

static const char *skip_value(const char *at, const char *end) {
  int depth = 0;
  for (; at < end; at++) {
    if (*at == '"') {
      at = skip_string(at, end) - 1;
    } else if (*at == '{' || *at == '[') {
      depth++;
      continue;
    } else if (*at == '}' || *at == ']') {
      if (depth == 0) return at;
      depth--;
    } else if (depth == 0 && *at == ',') {
      return at;
    } else {
      continue;
    }
    if (depth == 0) return at + 1;
  }
  return end;
}

/* The next item of a container: the text up to a comma or the closing bracket. */
static bool next_item(Json container, Json *cursor, Json *item) {
  if (!container.at || container.at >= container.end) return false;
  const char *at = cursor->at ? cursor->at : container.at + 1;
  at = skip_space(at, container.end);
  if (at < container.end && *at == ',') at = skip_space(at + 1, container.end);
  if (at >= container.end || *at == '}' || *at == ']') return false;
  item->at = at;
  item->end = cursor->at = skip_value(at, container.end);
  return true;
}

bool json_next_member(Json object, Json *cursor, Json *key, Json *value) {
  if (!object.at || *object.at != '{' || !next_item(object, cursor, key) || *key->at != '"')
    return false;
  const char *colon = skip_space(cursor->at, object.end);
  if (colon >= object.end || *colon != ':') return false;
  value->at = skip_space(colon + 1, object.end);
  value->end = cursor->at = skip_value(value->at, object.end);
  return true;
}

Json json_member(Json object, const char *name) {
  Json cursor = ABSENT, key, value;
  size_t length = strlen(name);
  while (json_next_member(object, &cursor, &key, &value))
    if ((size_t)(key.end - key.at) == length + 2 && !memcmp(key.at + 1, name, length)) return value;
  return ABSENT;
}

Json json_element(Json array, size_t index) {
  Json cursor = ABSENT, item;
  if (!array.at || *array.at != '[') return ABSENT;
  while (next_item(array, &cursor, &item))
    if (index-- == 0) return item;
  return ABSENT;
}

bool json_string(Json value, char *out, size_t size) {
  if (!value.at || *value.at != '"') return false;
  size_t used = 0;
  for (const char *at = value.at + 1; at < value.end - 1; at++) {
    if (*at == '\\' && !strchr("\"\\/", *++at)) return false; /* no path or name needs \u, \n */
    if (used + 1 >= size) return false;
    out[used++] = *at;
  }
  out[used] = '\0';
  return true;
}

long json_integer(Json value, long absent) {
  char text[32];
  size_t length = value.at ? (size_t)(value.end - value.at) : 0;
  if (length == 0 || length >= sizeof text) return absent;
  memcpy(text, value.at, length);
  text[length] = '\0';
  char *start = text[0] == '"' ? text + 1 : text, *end;
  long number = strtol(start, &end, 10);
  return end == start ? absent : number;
}
