// An xDS server that is not ours: go-control-plane's snapshot cache behind its
// own gRPC server, state-of-the-world and delta. It prints "ready ADDR", then
// reads one set of endpoints per line from standard input ("PORT PORT …") and
// serves each as a new version. It serves one HTTP listener, on the port given
// as the first argument. With "weighted" as the second it asks for turns by what
// endpoints report, in Envoy's words.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	weighted "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// everyNode files all proxies under one snapshot.
type everyNode struct{}

func (everyNode) ID(*core.Node) string { return "all" }

func main() {
	log.SetFlags(0)
	port, err := strconv.Atoi(os.Args[1])
	check(err)
	service := roundRobin()
	if len(os.Args) > 2 && os.Args[2] == "weighted" {
		service.LoadBalancingPolicy = turnsByReports()
	}
	snapshots := cache.NewSnapshotCache(true, everyNode{}, nil)
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(context.Background(), snapshots, nil))
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go func() { check(grpcServer.Serve(socket)) }()
	fmt.Println("ready", socket.Addr())

	lines := bufio.NewScanner(os.Stdin)
	for version := 1; lines.Scan(); version++ {
		set(snapshots, version, uint32(port), service, strings.Fields(lines.Text()))
	}
}

func set(snapshots cache.SnapshotCache, version int, port uint32, service *cluster.Cluster, endpoints []string) {
	snapshot, err := cache.NewSnapshot(strconv.Itoa(version), map[resource.Type][]types.Resource{
		resource.ListenerType: {httpListener(port)},
		resource.RouteType:    {routes()},
		resource.ClusterType:  {service},
		resource.EndpointType: {assignment(endpoints)},
	})
	check(err)
	check(snapshot.Consistent())
	check(snapshots.SetSnapshot(context.Background(), "all", snapshot))
}

func httpListener(port uint32) *listener.Listener {
	manager := pack(&hcm.HttpConnectionManager{
		StatPrefix: "ingress",
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{
			ConfigSource:    overADS(),
			RouteConfigName: "foreign-routes",
		}},
		HttpFilters: []*hcm.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(&router.Router{})},
		}},
	})
	return &listener.Listener{
		Name:    "foreign-listener",
		Address: address(port),
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: manager},
		}}}},
	}
}

func routes() *route.RouteConfiguration {
	return &route.RouteConfiguration{
		Name: "foreign-routes",
		VirtualHosts: []*route.VirtualHost{{
			Name:    "all",
			Domains: []string{"*"},
			Routes: []*route.Route{{
				Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
				Action: &route.Route_Route{Route: &route.RouteAction{
					ClusterSpecifier: &route.RouteAction_Cluster{Cluster: "foreign-service"},
				}},
			}},
		}},
	}
}

func roundRobin() *cluster.Cluster {
	return &cluster.Cluster{
		Name:                 "foreign-service",
		ConnectTimeout:       durationpb.New(5e9),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: overADS()},
		LbPolicy:             cluster.Cluster_ROUND_ROBIN,
	}
}

func turnsByReports() *cluster.LoadBalancingPolicy {
	config := pack(&weighted.ClientSideWeightedRoundRobin{
		BlackoutPeriod:     durationpb.New(0),
		WeightUpdatePeriod: durationpb.New(1e8),
	})
	return &cluster.LoadBalancingPolicy{Policies: []*cluster.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &core.TypedExtensionConfig{
			Name:        "envoy.load_balancing_policies.client_side_weighted_round_robin",
			TypedConfig: config,
		},
	}}}
}

func assignment(ports []string) *endpoint.ClusterLoadAssignment {
	var all []*endpoint.LbEndpoint
	for _, text := range ports {
		port, err := strconv.Atoi(text)
		check(err)
		all = append(all, &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{
			Endpoint: &endpoint.Endpoint{Address: address(uint32(port))},
		}})
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: "foreign-service",
		Endpoints:   []*endpoint.LocalityLbEndpoints{{LbEndpoints: all}},
	}
}

func address(port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       "127.0.0.1",
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

func overADS() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
}

func pack(message proto.Message) *anypb.Any {
	packed, err := anypb.New(message)
	check(err)
	return packed
}

func check(err error) {
	if err != nil {
		log.Fatal("foreign-xds: ", err)
	}
}
