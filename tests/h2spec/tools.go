//go:build tools

// Package tools names the program whose versions go.mod and go.sum pin.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
