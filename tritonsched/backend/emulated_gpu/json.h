/* Reading a model configuration: a walk over the JSON that Triton serialises, without a tree. */
#ifndef TRITONSCHED_JSON_H
#define TRITONSCHED_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* A piece of JSON text, [at, end). An absent value has at == NULL; every function passes it on. */
typedef struct {
  const char *at, *end;
} Json;

Json json_member(Json object, const char *key);              /* object[key] */
Json json_element(Json array, size_t index);                 /* array[index] */
bool json_next_member(Json object, Json *cursor, Json *key, Json *value); /* iteration; cursor {0} */
bool json_string(Json value, char *out, size_t size);        /* false: no string, or too long */
long json_integer(Json value, long absent);                  /* numbers, and numbers in quotes */

#endif
