/*
 * A PKCS #11 module that passes every call on to another one, the path of which
 * is in REAL_PKCS11, and whose C_Sign fails in the way that the first byte of the
 * file FAULT_PKCS11 says: h hangs until the file changes, c corrupts the
 * signature, s says that the session is gone, d that the device failed. Any other
 * byte, or no file: no fault.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long rv;

/* CK_FUNCTION_LIST of v2.40: a version, then the functions in their order. */
enum { C_SIGN = 43, FUNCTIONS = 68 };
struct list { unsigned char version[2]; void *f[FUNCTIONS]; };

static struct list list;
static rv (*sign)(unsigned long, unsigned char *, unsigned long, unsigned char *, unsigned long *);

static int fault(void) {
  const char *path = getenv("FAULT_PKCS11");
  FILE *f = path ? fopen(path, "r") : NULL;
  int c = f ? fgetc(f) : EOF;
  if (f) fclose(f);
  return c;
}

static rv faulty_sign(unsigned long session, unsigned char *in, unsigned long n, unsigned char *out, unsigned long *m) {
  int c = fault();
  while (c == 'h') {
    usleep(1000);
    c = fault();
  }
  if (c == 's') return 0xB3; /* CKR_SESSION_HANDLE_INVALID */
  if (c == 'd') return 0x30; /* CKR_DEVICE_ERROR */
  rv r = sign(session, in, n, out, m);
  if (c == 'c' && r == 0 && out) out[*m / 2] ^= 1;
  return r;
}

rv C_GetFunctionList(struct list **out) {
  struct list *real;
  void *module = dlopen(getenv("REAL_PKCS11"), RTLD_NOW | RTLD_LOCAL);
  if (!module) return 5; /* CKR_GENERAL_ERROR */
  rv (*get)(struct list **) = (rv (*)(struct list **))dlsym(module, "C_GetFunctionList");
  if (!get || get(&real)) return 5;
  memcpy(&list, real, sizeof list);
  sign = (rv (*)(unsigned long, unsigned char *, unsigned long, unsigned char *, unsigned long *))list.f[C_SIGN];
  list.f[C_SIGN] = (void *)faulty_sign;
  *out = &list;
  return 0;
}
