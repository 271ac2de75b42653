// Pins what the cluster tool builds: this file makes `go mod tidy` keep the programs in go.mod.

//go:build tools

package coredns

import _ "github.com/coredns/coredns"
