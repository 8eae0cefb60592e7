// Descriptors of records are made when somebody asks for them, which a dump or restore without errors never does.
//
// Generated code describes itself to protobuf's pool before main(): all descriptors are parsed for their names, a
// twentieth of the time of a small restore. Nobody looks for a record by its name, and whoever has one (show, the
// reports about damaged images) has protobuf add the descriptors of its file and of those that it imports
// (generated_message_reflection.cc, AssignDescriptors). So the linker takes this in place of the constructor of
// google::protobuf::internal::AddDescriptorsRunner (CMakeLists.txt, --wrap). If a protobuf to come calls it otherwise,
// records are described at the start again.

extern "C" void __wrap__ZN6google8protobuf8internal20AddDescriptorsRunnerC1EPKNS1_15DescriptorTableE(void* runner,
                                                                                                     const void* table);
extern "C" void __wrap__ZN6google8protobuf8internal20AddDescriptorsRunnerC1EPKNS1_15DescriptorTableE(void*,
                                                                                                     const void*) {}
