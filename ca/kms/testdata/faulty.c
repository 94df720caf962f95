/*
 * A PKCS #11 module that passes every call on to another one, the path of which
 * is in REAL_PKCS11, and whose C_Sign fails in the way that the first byte of the
 * file FAULT_PKCS11 says: h hangs until the file changes, c corrupts the
 * signature, s says that the session is gone, d that the device failed. f and l
 * have C_GetTokenInfo say that one try of the PIN is left, or none. Any other
 * byte, or no file: no fault. Each C_Login leaves a byte in the file LOGINS_PKCS11.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long rv;

/* CK_FUNCTION_LIST of v2.40: a version, then the functions in their order. */
enum { C_GETTOKENINFO = 6, C_LOGIN = 18, C_SIGN = 43, FUNCTIONS = 68 };
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

static rv (*token_info)(unsigned long, char *);
static rv (*login)(unsigned long, unsigned long, unsigned char *, unsigned long);

static rv faulty_token_info(unsigned long slot, char *info) {
  rv r = token_info(slot, info);
  int c = fault();
  unsigned long *flags = (unsigned long *)(info + 96); /* after label, manufacturer, model, serial number */
  if (r == 0 && c == 'f') *flags |= 0x20000; /* CKF_USER_PIN_FINAL_TRY */
  if (r == 0 && c == 'l') *flags |= 0x40000; /* CKF_USER_PIN_LOCKED */
  return r;
}

static rv counted_login(unsigned long session, unsigned long user, unsigned char *pin, unsigned long n) {
  const char *path = getenv("LOGINS_PKCS11");
  FILE *f = path ? fopen(path, "a") : NULL;
  if (f) {
    fputc('.', f);
    fclose(f);
  }
  return login(session, user, pin, n);
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
  token_info = (rv (*)(unsigned long, char *))list.f[C_GETTOKENINFO];
  list.f[C_GETTOKENINFO] = (void *)faulty_token_info;
  login = (rv (*)(unsigned long, unsigned long, unsigned char *, unsigned long))list.f[C_LOGIN];
  list.f[C_LOGIN] = (void *)counted_login;
  *out = &list;
  return 0;
}
