// Pins what the cluster tool builds: this file makes `go mod tidy` keep the programs in go.mod.

//go:build tools

package etcd

import _ "go.etcd.io/etcd/server/v3"
