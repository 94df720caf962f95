#!/usr/bin/env bash
# Makes a program for Windows (amd64) run here, under Debian's Wine, as a command:
#
#   wine.sh PROGRAM.exe COMMAND FOLDER
#
# FOLDER is for what Wine keeps. Wine 8 lacks a library of Windows 10 with one function,
# the random numbers that Go begins with; Wine's own stand behind it.
set -euo pipefail
program=$(realpath "$1") command=$2
mkdir -p "$3"
folder=$(realpath "$3")
"$(dirname "$0")/../packages.sh" wine64 gcc-mingw-w64-x86-64
cat >"$folder/random.c" <<'C'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE to, SIZE_T n) { return RtlGenRandom(to, (ULONG)n); }
C
export WINEPREFIX=$folder/prefix WINEDEBUG=-all
wine=/usr/lib/wine/wine64
"$wine" cmd /c exit >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
x86_64-w64-mingw32-gcc -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" "$folder/random.c" -ladvapi32
printf '#!/bin/sh\nWINEPREFIX=%q WINEDEBUG=-all exec %s %q "$@"\n' "$WINEPREFIX" "$wine" "$program" >"$command"
chmod +x "$command"
