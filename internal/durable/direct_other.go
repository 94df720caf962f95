//go:build !linux && !windows

package durable

const directly = 0
