// The code page of the restored tasks (workshop.h). rbx = data page, r12 = argument.
asm(R"(
        .pushsection .rodata
        .balign 16
        .globl workshop_code_begin, workshop_code_end, code_exit_42, code_pause, code_reap, code_threads_leader
        .globl code_threads_other, code_exit_sum
workshop_code_begin:

code_exit_42:
        mov     $42, %edi
        mov     $231, %eax              # exit_group
        syscall

code_pause:
        mov     $34, %eax               # pause
        syscall
        jmp     code_pause

# Reaps child r12 and exits with its exit code, or 128 + its signal.
code_reap:
        mov     %r12, %rdi
        mov     %rbx, %rsi
        xor     %edx, %edx
        xor     %r10d, %r10d
        mov     $61, %eax               # wait4
        syscall
        movzbl  1(%rbx), %edi
        mov     (%rbx), %eax
        and     $0x7f, %eax
        jz      1f
        lea     128(%rax), %edi
1:      mov     $231, %eax
        syscall

# Waits until r12 threads have counted themselves, then exits with 43.
code_threads_leader:
        mov     (%rbx), %rax
        cmp     %r12, %rax
        je      1f
        mov     $24, %eax               # sched_yield
        syscall
        jmp     code_threads_leader
1:      mov     $43, %edi
        mov     $231, %eax
        syscall

code_threads_other:
        lock incq (%rbx)
        mov     $60, %eax               # exit
        xor     %edi, %edi
        syscall

# Exits with the sum of the first bytes of the page at r12 and of the one that follows but one.
code_exit_sum:
        movzbl  (%r12), %edi
        movzbl  8192(%r12), %eax
        add     %eax, %edi
        mov     $231, %eax
        syscall
workshop_code_end:
        .popsection
)");
