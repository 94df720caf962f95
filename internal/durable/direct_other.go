//go:build !linux

package durable

const directly = 0
