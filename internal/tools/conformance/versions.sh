# shellcheck shell=bash disable=SC2034
# Sourced: the versions of the foreign programs that more than one script names.
CT_GO=v1.4.0
TRILLIAN=v1.7.2 # the one that certificate-transparency-go v1.4.0 asks for
FULCIO=v1.8.5 # the CA that the bench compares with
MOTO=5.2.5
